#include "client/cpp/log_shipper.h"

#include <algorithm>
#include <deque>
#include <map>
#include <thread>
#include <utility>

#include <prometheus/counter.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/channel.h"
#include "common/log.h"
#include "common/log_line.h"
#include "common/status_util.h"
#include "common/utf8_cut.h"
#include "google/protobuf/util/time_util.h"
#include "rlhf/v1/log_service.grpc.pb.h"

namespace rlhf::client {
namespace {

using google::protobuf::util::TimeUtil;

constexpr absl::Duration kLastCall = absl::Seconds(1);
constexpr size_t kJobsCounted = 64;  // dropped lines of more jobs are counted together

v1::LogLine LineOf(const LogRecord& record, size_t longest) {
  v1::LogLine line = LogLineOf(record);
  line.mutable_message()->resize(Utf8Cut(line.message(), longest));
  return line;
}

class Shipper final : public LogShipper {
 public:
  Shipper(std::shared_ptr<grpc::Channel> channel, std::function<std::string()> session_id, MetricsRegistry* metrics,
          const LogShipperOptions& options)
      : stub_(v1::LogService::NewStub(std::move(channel))),
        session_id_(std::move(session_id)),
        options_(options),
        shipped_metric_(CounterOf(metrics, "shipped")),
        dropped_metric_(CounterOf(metrics, "dropped")),
        observer_(AddLogObserver([this](const LogRecord& record) { Append(record); })),
        thread_([this] { Run(); }) {}
  ~Shipper() override { Stop(); }

  int64_t shipped() const override {
    absl::MutexLock lock(&mu_);
    return shipped_;
  }
  int64_t dropped() const override {
    absl::MutexLock lock(&mu_);
    return dropped_;
  }
  void Stop() override {
    absl::MutexLock join(&join_mu_);
    if (!thread_.joinable()) return;
    RemoveLogObserver(observer_);
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
      // Its answer tells whether the lines are there; without it they would be sent again.
      const auto answered = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return call_in_flight_ == nullptr; };
      if (!mu_.AwaitWithTimeout(absl::Condition(&answered), kLastCall)) call_in_flight_->TryCancel();
    }
    thread_.join();
  }

 private:
  static prometheus::Counter* CounterOf(MetricsRegistry* metrics, const std::string& outcome) {
    if (metrics == nullptr) return nullptr;
    return &metrics->Counter("rlhf_log_lines_total", "Log lines about a job, by whether the coordinator got them.",
                             {{"outcome", outcome}});
  }

  void Append(const LogRecord& record) {
    if (record.context.job_id.empty()) return;
    v1::LogLine line = LineOf(record, options_.message_bytes);
    absl::MutexLock lock(&mu_);
    queue_.push_back(std::move(line));
    DropOldest();
  }
  void DropOldest() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    while (queue_.size() > options_.queued_lines) {
      Dropped(queue_.front(), 1);
      queue_.pop_front();
    }
  }
  void Dropped(const v1::LogLine& line, int64_t n) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    dropped_ += n;
    if (dropped_metric_ != nullptr) dropped_metric_->Increment(static_cast<double>(n));
    const bool own = untold_.size() < kJobsCounted || untold_.count(line.job_id()) > 0;
    untold_[own ? line.job_id() : ""] += n;
  }

  bool Due() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || queue_.size() >= options_.batch_lines; }

  void Run() {
    absl::Status status;
    while (true) {
      bool last = false;
      {
        absl::MutexLock lock(&mu_);
        // After a failed call a full batch is no reason to call at once.
        mu_.AwaitWithTimeout(status.ok() ? absl::Condition(this, &Shipper::Due) : absl::Condition(&stopping_),
                             options_.every);
        last = stopping_;
      }
      const absl::Time deadline = absl::Now() + kLastCall;
      do {
        status = Ship(last ? std::max(absl::ZeroDuration(), deadline - absl::Now()) : options_.call_timeout);
      } while (last && status.ok() && !Empty() && absl::Now() < deadline);
      if (last) return;
    }
  }
  bool Empty() const {
    absl::MutexLock lock(&mu_);
    return queue_.empty() && untold_.empty();
  }

  absl::Status Ship(absl::Duration timeout) {
    v1::AppendLogsRequest request;
    request.set_session_id(session_id_());
    if (request.session_id().empty()) return absl::UnavailableError("not registered");
    std::map<std::string, int64_t> told;
    const std::unique_ptr<grpc::ClientContext> context = MakeContext(timeout);
    {
      absl::MutexLock lock(&mu_);
      told.swap(untold_);
      for (const auto& [job_id, lines] : told) *request.add_lines() = DroppedLine(job_id, lines);
      while (!queue_.empty() && static_cast<size_t>(request.lines_size()) < options_.batch_lines + told.size()) {
        *request.add_lines() = std::move(queue_.front());
        queue_.pop_front();
      }
      if (request.lines().empty()) return absl::OkStatus();
      call_in_flight_ = context.get();
    }
    v1::AppendLogsResponse response;
    const absl::Status status = FromGrpc(stub_->AppendLogs(context.get(), request, &response));
    absl::MutexLock lock(&mu_);
    call_in_flight_ = nullptr;
    const int first = static_cast<int>(told.size());
    if (status.ok()) {
      const int64_t lines = request.lines_size() - first;
      shipped_ += lines;
      if (shipped_metric_ != nullptr) shipped_metric_->Increment(static_cast<double>(lines));
      return status;
    }
    for (const auto& [job_id, lines] : told) untold_[job_id] += lines;
    if (absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) {
      // The same lines would be refused again.
      for (int i = first; i < request.lines_size(); ++i) Dropped(request.lines(i), 1);
    } else {
      for (int i = request.lines_size() - 1; i >= first; --i) queue_.push_front(std::move(*request.mutable_lines(i)));
      DropOldest();
    }
    return status;
  }
  static v1::LogLine DroppedLine(const std::string& job_id, int64_t lines) {
    v1::LogLine line;
    *line.mutable_at() = TimeUtil::GetCurrentTime();
    line.set_level("warn");
    line.set_job_id(job_id);
    line.set_message(absl::StrCat(lines,
                                  " lines of this process were dropped before they could be sent; its own log "
                                  "has them"));
    (*line.mutable_fields())["dropped"] = absl::StrCat(lines);
    return line;
  }

  const std::unique_ptr<v1::LogService::Stub> stub_;
  const std::function<std::string()> session_id_;
  const LogShipperOptions options_;
  prometheus::Counter* const shipped_metric_;
  prometheus::Counter* const dropped_metric_;

  mutable absl::Mutex mu_;
  std::deque<v1::LogLine> queue_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int64_t> untold_ ABSL_GUARDED_BY(mu_);  // dropped and not yet told, by job
  int64_t shipped_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t dropped_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* call_in_flight_ ABSL_GUARDED_BY(mu_) = nullptr;

  absl::Mutex join_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  const int64_t observer_;                        // after everything that it uses
  std::thread thread_ ABSL_GUARDED_BY(join_mu_);  // last: it uses everything above
};

}  // namespace

std::unique_ptr<LogShipper> LogShipper::Start(std::shared_ptr<grpc::Channel> channel,
                                              std::function<std::string()> session_id, MetricsRegistry* metrics,
                                              const LogShipperOptions& options) {
  return std::make_unique<Shipper>(std::move(channel), std::move(session_id), metrics, options);
}

}  // namespace rlhf::client
