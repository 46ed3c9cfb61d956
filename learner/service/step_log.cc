#include "learner/service/step_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::learner {
namespace {

nlohmann::ordered_json LineOf(const char* event, const v1::GroupAssignment& group, int64_t step) {
  return {{"event", event},       {"job", group.job_id()},       {"epoch", group.epoch()},
          {"rank", group.rank()}, {"world", group.world_size()}, {"step", step}};
}

}  // namespace

std::string MetricsDigest(const std::map<std::string, double>& metrics) {
  std::string bytes;
  for (const auto& [name, value] : metrics) {
    bytes.append(name).push_back('\0');
    char raw[sizeof(value)];
    std::memcpy(raw, &value, sizeof(value));
    bytes.append(raw, sizeof(value));
  }
  return artifact::Xxh3Hex(bytes.data(), bytes.size());
}

absl::StatusOr<StepLog> StepLog::Open(const std::string& dir, const std::string& instance) {
  StepLog log;
  if (dir.empty()) return log;
  RLHF_RETURN_IF_ERROR(MakeDirs(dir));
  const std::string path = absl::StrCat(dir, "/steps-", instance, ".jsonl");
  log.fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log.fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  return log;
}

StepLog::StepLog(StepLog&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
StepLog& StepLog::operator=(StepLog&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
StepLog::~StepLog() {
  if (fd_ >= 0) close(fd_);
}

void StepLog::Append(const std::string& line) const {
  if (fd_ < 0) return;
  // One write a line: what a killed process leaves is whole lines.
  const std::string text = line + "\n";
  if (write(fd_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    spdlog::warn("the step log lost a line: {}", std::strerror(errno));
}

void StepLog::Trained(const v1::GroupAssignment& group, const StepEvidence& evidence) {
  nlohmann::ordered_json line = LineOf("trained", group, evidence.step);
  line["weights"] = evidence.weights_digest;
  if (!evidence.state_digest.empty()) line["state"] = evidence.state_digest;
  line["metrics"] = evidence.metrics_digest;
  line["batch"] = evidence.batch_digest;
  if (group.rank() == 0) line["samples"] = evidence.samples;
  Append(line.dump());
}

void StepLog::Committed(const v1::GroupAssignment& group, const v1::PolicyVersion& version) {
  nlohmann::ordered_json line = LineOf("committed", group, version.step());
  line["lineage"] = version.lineage();
  line["weights"] = version.digest();
  Append(line.dump());
}

void StepLog::Refused(const v1::GroupAssignment& group, int64_t step, const std::string& why) {
  nlohmann::ordered_json line = LineOf("refused", group, step);
  line["why"] = why;
  Append(line.dump());
}

}  // namespace rlhf::learner
