#include "common/tracing.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/bounded_queue.h"
#include "common/durable_file.h"
#include "common/log.h"

namespace rlhf {
namespace {

thread_local TraceContext current;

std::string RandomHex(int words) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  std::string hex;
  for (int i = 0; i < words; ++i) absl::StrAppendFormat(&hex, "%016x", std::max<uint64_t>(1, random()));
  return hex;
}

bool IsId(absl::string_view id, size_t digits) {
  return id.size() == digits && id.find_first_not_of("0123456789abcdef") == absl::string_view::npos &&
         id.find_first_not_of('0') != absl::string_view::npos;
}

nlohmann::ordered_json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

std::string LineOf(const SpanRecord& span, const nlohmann::ordered_json& resource) {
  nlohmann::ordered_json json = {{"traceId", span.context.trace_id}, {"spanId", span.context.span_id}};
  if (!span.parent_span_id.empty()) json["parentSpanId"] = span.parent_span_id;
  json["name"] = span.name;
  json["kind"] = static_cast<int>(span.kind);
  // 64-bit numbers are strings in protobuf's JSON.
  json["startTimeUnixNano"] = absl::StrCat(absl::ToUnixNanos(span.begin));
  json["endTimeUnixNano"] = absl::StrCat(absl::ToUnixNanos(span.end));
  json["attributes"] = nlohmann::ordered_json::array();
  for (const auto& [key, value] : span.attributes) json["attributes"].push_back(Attribute(key, value));
  if (!span.error.empty()) json["status"] = {{"code", 2}, {"message", span.error}};
  nlohmann::ordered_json scope = {{"scope", {{"name", "rlhf"}}}};
  scope["spans"] = nlohmann::ordered_json::array({std::move(json)});
  nlohmann::ordered_json of_resource = {{"resource", resource}};
  of_resource["scopeSpans"] = nlohmann::ordered_json::array({std::move(scope)});
  nlohmann::ordered_json line = nlohmann::ordered_json::object();
  line["resourceSpans"] = nlohmann::ordered_json::array({std::move(of_resource)});
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

// One thread writes.
class Exporter {
 public:
  explicit Exporter(const TracingOptions& options) : options_(options), queue_(options.waiting_spans) {
    resource_["attributes"] =
        nlohmann::ordered_json::array({Attribute("service.name", absl::StrCat("rlhf-", options.role)),
                                       Attribute("service.instance.id", options.instance)});
  }
  ~Exporter() {
    queue_.Close();
    if (thread_.joinable()) thread_.join();
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Start() {
    const absl::Status status = MakeDirs(options_.dir);
    if (!status.ok()) return status;
    if (const absl::Status opened = Open(); !opened.ok()) return opened;
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }
  void Export(SpanRecord record) {
    if (!queue_.TryPush(std::move(record))) ++dropped_;
  }
  int64_t dropped() const { return dropped_; }

 private:
  std::string PathOf(int number) const {
    return number == 0 ? absl::StrCat(options_.dir, "/", options_.instance, ".traces.jsonl")
                       : absl::StrCat(options_.dir, "/", options_.instance, ".traces.", number, ".jsonl");
  }
  absl::Status Open() {
    fd_ = open(PathOf(0).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", PathOf(0)));
    bytes_ = lseek(fd_, 0, SEEK_END);
    return absl::OkStatus();
  }
  void Rotate() {
    close(fd_);
    fd_ = -1;
    std::remove(PathOf(options_.files - 1).c_str());
    for (int number = options_.files - 2; number >= 0; --number)
      std::rename(PathOf(number).c_str(), PathOf(number + 1).c_str());
    if (const absl::Status status = Open(); !status.ok()) spdlog::warn("no spans are kept: {}", status.ToString());
  }
  void Run() {
    while (true) {
      const std::optional<SpanRecord> span = queue_.Pop();
      if (!span) return;
      if (fd_ < 0) {
        ++dropped_;
        continue;
      }
      const std::string line = LineOf(*span, resource_);
      if (bytes_ > 0 && bytes_ + static_cast<int64_t>(line.size()) > options_.file_bytes) Rotate();
      // One write a line: what a killed process leaves is whole lines.
      if (fd_ >= 0 && write(fd_, line.data(), line.size()) == static_cast<ssize_t>(line.size())) {
        bytes_ += static_cast<int64_t>(line.size());
      } else {
        ++dropped_;
      }
    }
  }

  const TracingOptions options_;
  nlohmann::ordered_json resource_;
  BoundedQueue<SpanRecord> queue_;
  std::atomic<int64_t> dropped_{0};
  int fd_ = -1;        // of the thread, once it runs
  int64_t bytes_ = 0;  // likewise
  std::thread thread_;
};

std::atomic<bool> tracing{false};
absl::Mutex exporter_mu(absl::kConstInit);
std::shared_ptr<Exporter>* exporter ABSL_GUARDED_BY(exporter_mu) = nullptr;  // never destroyed

std::shared_ptr<Exporter> TheExporter() {
  absl::MutexLock lock(&exporter_mu);
  return exporter == nullptr ? nullptr : *exporter;
}
void SetExporter(std::shared_ptr<Exporter> next) {
  absl::MutexLock lock(&exporter_mu);
  if (exporter == nullptr) exporter = new std::shared_ptr<Exporter>;
  tracing = next != nullptr;
  exporter->swap(next);
}

}  // namespace

std::string ToTraceparent(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id, "-01");
}

absl::StatusOr<TraceContext> ParseTraceparent(absl::string_view header) {
  // VV-T{32}-S{16}-FF; a later version may say more after that.
  const bool whole = header.size() >= 55 && header[2] == '-' && header[35] == '-' && header[52] == '-' &&
                     header.substr(0, 2) != "ff" && (header.substr(0, 2) != "00" || header.size() == 55) &&
                     (header.size() == 55 || header[55] == '-');
  const auto hex = [](absl::string_view text) {
    return text.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
  };
  if (!whole || !hex(header.substr(0, 2)) || !hex(header.substr(53, 2)) || !IsId(header.substr(3, 32), 32) ||
      !IsId(header.substr(36, 16), 16)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "traceparent: expected 00-TRACE-SPAN-FLAGS with 32, 16 and 2 lower-case hexadecimal digits, found \"",
        header.substr(0, 80), "\""));
  }
  return TraceContext{std::string(header.substr(3, 32)), std::string(header.substr(36, 16))};
}

TraceContext TraceOf(absl::string_view name) {
  // FNV-1a, twice from different beginnings.
  uint64_t halves[2] = {0xcbf29ce484222325u, 0x9ae16a3b2f90404fu};
  for (uint64_t& half : halves) {
    for (const char c : name) half = (half ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    half = std::max<uint64_t>(1, half);
  }
  return {absl::StrFormat("%016x%016x", halves[0], halves[1]), ""};
}

absl::Status StartTracing(const TracingOptions& options) {
  auto started = std::make_shared<Exporter>(options);
  if (const absl::Status status = started->Start(); !status.ok()) return status;
  SetExporter(std::move(started));
  return absl::OkStatus();
}
void StopTracing() {
  SetExporter(nullptr);
}
TracingScope::TracingScope(const std::string& dir, const std::string& role, const std::string& instance) {
  if (dir.empty()) return;
  TracingOptions options;
  options.dir = dir;
  options.role = role;
  options.instance = instance;
  if (const absl::Status status = StartTracing(options); !status.ok())
    spdlog::warn("no spans are kept: {}", status.ToString());
}
TracingScope::~TracingScope() {
  StopTracing();
}
bool TracingOn() {
  return tracing;
}
int64_t DroppedSpans() {
  const std::shared_ptr<Exporter> to = TheExporter();
  return to == nullptr ? 0 : to->dropped();
}

void ExportSpan(SpanRecord record) {
  if (!TracingOn()) return;
  const std::shared_ptr<Exporter> to = TheExporter();
  if (to == nullptr) return;
  if (record.context.trace_id.empty()) record.context.trace_id = RandomHex(2);
  if (record.context.span_id.empty()) record.context.span_id = RandomHex(1);
  to->Export(std::move(record));
}

Span::Span(std::string name) : Span(std::move(name), current) {}
Span::Span(std::string name, TraceContext parent) : on_(TracingOn()), outer_(current) {
  if (!on_) return;
  record_.name = std::move(name);
  record_.begin = absl::Now();
  record_.parent_span_id = std::move(parent.span_id);
  record_.context = {parent.trace_id.empty() ? RandomHex(2) : std::move(parent.trace_id), RandomHex(1)};
  current = record_.context;
}
Span::~Span() {
  current = outer_;
  if (!on_) return;
  record_.end = absl::Now();
  ExportSpan(std::move(record_));
}
void Span::Set(const std::string& key, std::string value) {
  if (on_) record_.attributes[key] = std::move(value);
}
void Span::Fail(std::string error) {
  if (on_) record_.error = std::move(error);
}
TraceContext CurrentTrace() {
  return current;
}

TraceScope::TraceScope(TraceContext context) : outer_(std::exchange(current, std::move(context))) {}
TraceScope::~TraceScope() {
  current = std::move(outer_);
}

}  // namespace rlhf
