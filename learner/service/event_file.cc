#include "learner/service/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/durable_file.h"
#include "common/log.h"

namespace rlhf::learner {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? value >> 1 ^ 0x82f63b78u : value >> 1;
    table[i] = value;
  }
  return table;
}

void AppendLittleEndian(uint64_t value, int bytes, std::string* out) {
  for (int i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

// Protocol buffers' wire format. The messages are tensorflow/core/util/event.proto and framework/summary.proto; the
// numbers are those of their fields.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}
void AppendTag(uint32_t field, WireType type, std::string* out) {
  AppendVarint(field << 3 | type, out);
}
void AppendBytes(uint32_t field, absl::string_view bytes, std::string* out) {
  AppendTag(field, kBytes, out);
  AppendVarint(bytes.size(), out);
  out->append(bytes.data(), bytes.size());
}

// Event: double wall_time = 1; int64 step = 2;
std::string EventAt(absl::Time at, int64_t step) {
  std::string event;
  const double seconds = absl::ToDoubleSeconds(at - absl::UnixEpoch());
  uint64_t bits = 0;
  std::memcpy(&bits, &seconds, sizeof(bits));
  AppendTag(1, kFixed64, &event);
  AppendLittleEndian(bits, 8, &event);
  AppendTag(2, kVarint, &event);
  AppendVarint(static_cast<uint64_t>(step), &event);
  return event;
}

// Event.session_log = 7: SessionLog {status = 1: START = 1}.
std::string SessionStart(absl::Time at, int64_t step) {
  std::string log;
  AppendTag(1, kVarint, &log);
  AppendVarint(1, &log);
  std::string event = EventAt(at, step);
  AppendBytes(7, log, &event);
  return event;
}

// Summary.value = 1: Value {string tag = 1; float simple_value = 2}.
void AppendScalar(const std::string& tag, double value, std::string* summary) {
  std::string scalar;
  AppendBytes(1, tag, &scalar);
  const auto narrow = static_cast<float>(value);
  uint32_t bits = 0;
  std::memcpy(&bits, &narrow, sizeof(bits));
  AppendTag(2, kFixed32, &scalar);
  AppendLittleEndian(bits, 4, &scalar);
  AppendBytes(1, scalar, summary);
}

}  // namespace

uint32_t Crc32c(absl::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = MakeTable();
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

uint32_t MaskedCrc32c(absl::string_view bytes) {
  const uint32_t crc = Crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

EventFile::EventFile(std::string dir, std::string instance) : dir_(std::move(dir)), instance_(std::move(instance)) {}
EventFile::~EventFile() {
  End();
}

void EventFile::Begin(const std::string& job_id, int64_t next_step, absl::Time at) {
  if (dir_.empty()) return;
  if (fd_ < 0 || job_id_ != job_id) {
    if (!Open(job_id, at)) return;
    std::string version = EventAt(at, 0);
    AppendBytes(3, "brain.Event:2", &version);  // Event.file_version
    Append(version);
  } else if (next_step > newest_) {
    return;
  }
  Append(SessionStart(at, next_step));
  newest_ = next_step - 1;
}

void EventFile::Step(int64_t step, absl::Time at, const std::map<std::string, double>& metrics) {
  if (fd_ < 0) return;
  std::string summary;
  for (const auto& [name, value] : metrics) AppendScalar(name, value, &summary);
  std::string event = EventAt(at, step);
  AppendBytes(5, summary, &event);  // Event.summary
  Append(event);
  newest_ = std::max(newest_, step);
}

void EventFile::End() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
  job_id_.clear();
  path_.clear();
}

bool EventFile::Open(const std::string& job_id, absl::Time at) {
  End();
  const std::string folder = absl::StrCat(dir_, "/", job_id);
  absl::Status status = MakeDirs(folder);
  if (status.ok()) {
    // Readers take a folder's files in the order of their names.
    path_ = absl::StrFormat("%s/events.out.tfevents.%010d.%s.%d.%d", folder, absl::ToUnixSeconds(at), instance_,
                            getpid(), files_++);
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd_ < 0) status = absl::ErrnoToStatus(errno, absl::StrCat("cannot make ", path_));
  }
  if (!status.ok()) {
    spdlog::warn("no TensorBoard events are kept: {}", status.ToString());
    path_.clear();
    return false;
  }
  job_id_ = job_id;
  return true;
}

void EventFile::Append(const std::string& event) {
  if (fd_ < 0) return;
  std::string record;
  AppendLittleEndian(event.size(), 8, &record);
  AppendLittleEndian(MaskedCrc32c(record), 4, &record);
  record += event;
  AppendLittleEndian(MaskedCrc32c(event), 4, &record);
  const ssize_t written = write(fd_, record.data(), record.size());
  if (written == static_cast<ssize_t>(record.size())) return;
  // After a record that is not whole a reader finds nothing more.
  spdlog::warn("no more events in {}: {}", path_, written < 0 ? std::strerror(errno) : "the disk is full");
  close(fd_);
  fd_ = -1;
}

}  // namespace rlhf::learner
