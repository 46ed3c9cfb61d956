#include <deque>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/grpc_adapter/loop_stream.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "rlhf/v1/log_service.grpc.pb.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kPage = 200;
constexpr int kMaxLinesACall = 10'000;

class FollowStream final : public LoopStream<v1::LogLine> {
 public:
  FollowStream(const Edge& edge, Caller caller, v1::FollowLogsRequest request)
      : LoopStream(edge), caller_(std::move(caller)), request_(std::move(request)) {}

 private:
  void Pump() override {
    if (!begun_) {
      begun_ = true;
      if (absl::Status status = Begin(); !status.ok()) return End(status);
    }
    while (page_.empty()) {
      const int64_t before = sequence_;
      for (Logs::Entry& entry : edge_.logs->Read(request_.job_id(), sequence_, min_level_, kPage, &sequence_)) {
        page_.push_back(std::move(entry.line));
      }
      if (sequence_ == before) {
        if (!request_.follow()) End(absl::OkStatus());
        return;
      }
    }
    v1::LogLine line = *page_.front();
    page_.pop_front();
    Write(std::move(line));
  }
  void Ended() override { edge_.logs->Unwatch(watch_); }

  absl::Status Begin() {
    RLHF_ASSIGN_OR_RETURN(min_level_, LogLevel(request_.min_level()));
    if (request_.job_id().empty()) {
      RLHF_RETURN_IF_ERROR(edge_.Admit(caller_, "*"));
    } else {
      RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge_.FindJob(caller_, request_.job_id(), ""));
      request_.set_job_id(job.id());
    }
    if (request_.follow()) watch_ = edge_.logs->Watch([this] { Wake(); });
    return absl::OkStatus();
  }

  const Caller caller_;
  v1::FollowLogsRequest request_;
  bool begun_ = false;
  int min_level_ = 0;
  int64_t sequence_ = 0;
  int64_t watch_ = 0;
  std::deque<std::shared_ptr<const v1::LogLine>> page_;
};

class LogService final : public v1::LogService::CallbackService {
 public:
  explicit LogService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* AppendLogs(grpc::CallbackServerContext* context, const v1::AppendLogsRequest* request,
                                       v1::AppendLogsResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::AppendLogsRequest& r) -> absl::StatusOr<v1::AppendLogsResponse> {
          RLHF_RETURN_IF_ERROR(edge_.CheckSession(caller, r.session_id()));
          if (r.lines_size() > kMaxLinesACall) {
            return absl::InvalidArgumentError(
                absl::StrCat("lines: expected at most ", kMaxLinesACall, ", found ", r.lines_size()));
          }
          RLHF_ASSIGN_OR_RETURN(const Session* session, edge_.fleet->Find(r.session_id()));
          std::string role = v1::Role_Name(session->identity.role());
          if (absl::StartsWith(role, "ROLE_")) role = role.substr(5);
          edge_.logs->Append(session->identity.instance_id(), absl::AsciiStrToLower(role), r);
          return v1::AppendLogsResponse();
        }));
  }
  grpc::ServerWriteReactor<v1::LogLine>* FollowLogs(grpc::CallbackServerContext* context,
                                                    const v1::FollowLogsRequest* request) override {
    return FollowStream::Run(std::make_shared<FollowStream>(edge_, CallerOf(*context), *request), *context);
  }

 private:
  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeLogService(const Edge& edge) {
  return std::make_unique<LogService>(edge);
}

}  // namespace rlhf::coordinator
