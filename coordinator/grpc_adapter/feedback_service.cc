#include "rlhf/v1/feedback_service.grpc.pb.h"

#include <algorithm>
#include <map>
#include <utility>

#include <prometheus/counter.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/comparison_sets.h"
#include "coordinator/grpc_adapter/collect_lookup.h"
#include "coordinator/grpc_adapter/loop_stream.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(200);
constexpr int kMaxAnswers = 1000;
constexpr size_t kMaxImportBytes = 256 << 20;

void CountComparisons(const Edge& edge, const char* source, double n) {
  if (edge.metrics == nullptr || n <= 0) return;
  edge.metrics
      ->Counter("rlhf_comparisons_total", "Comparisons taken in, by where they came from.", {{"source", source}})
      .Increment(n);
}

// The comparisons of a collect job, or of an imported set ("set:NAME").
class ExportStream final : public LoopStream<v1::Comparison> {
 public:
  ExportStream(const Edge& edge, ComparisonSets* sets, Caller caller, v1::ExportComparisonsRequest request)
      : LoopStream(edge), sets_(sets), caller_(std::move(caller)), request_(std::move(request)) {}

 private:
  void Pump() override {
    if (!begun_) {
      begun_ = true;
      if (absl::Status status = Begin(); !status.ok()) return End(status);
    }
    if (next_ == comparisons_.size()) return End(absl::OkStatus());
    Write(std::move(comparisons_[next_++]));
  }
  absl::Status Begin() {
    if (absl::StartsWith(request_.job_id(), "set:")) {
      RLHF_ASSIGN_OR_RETURN(comparisons_, sets_->Read(Edge::ProjectFor(caller_, ""), request_.job_id().substr(4)));
      if (comparisons_.empty())
        return absl::NotFoundError(
            absl::StrCat("no comparisons were imported as \"", request_.job_id().substr(4), "\""));
      return absl::OkStatus();
    }
    RLHF_ASSIGN_OR_RETURN(const CollectTarget target, FindCollect(edge_, caller_, request_.job_id(), "",
                                                                  "/rlhf.v1.FeedbackService/ExportComparisons"));
    const std::string id = target.job_id.empty() ? target.last_id : target.job_id;
    if (!id.empty()) comparisons_ = edge_.feedback->Comparisons(id);
    return absl::OkStatus();
  }

  ComparisonSets* const sets_;
  const Caller caller_;
  const v1::ExportComparisonsRequest request_;
  bool begun_ = false;
  std::vector<v1::Comparison> comparisons_;
  size_t next_ = 0;
};

// Reads everything, within a bound, and imports it as one.
class ImportStream final : public grpc::ServerReadReactor<v1::ImportComparisonsRequest> {
 public:
  ImportStream(const Edge& edge, ComparisonSets* sets, Caller caller, v1::ImportComparisonsResponse* response)
      : edge_(edge), sets_(sets), caller_(std::move(caller)), response_(response) {
    StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) {
      // On the loop, in its own time; a client that has gone away gets what it sent imported all the same.
      edge_.loop->Post([this] { Import(); });
      return;
    }
    if (comparisons_.empty()) {
      project_ = Edge::ProjectFor(caller_, request_.project());
      set_ = request_.set();
    } else if (request_.set() != set_ && !request_.set().empty()) {
      return Finish(ToGrpc(
          absl::InvalidArgumentError(absl::StrCat("set: expected \"", set_, "\" in every message of the stream"))));
    }
    bytes_ += request_.ByteSizeLong();
    if (bytes_ > kMaxImportBytes) {
      return Finish(ToGrpc(absl::ResourceExhaustedError(
          absl::StrCat("expected at most ", kMaxImportBytes, " bytes a call; import the rest with another"))));
    }
    for (v1::Comparison& comparison : *request_.mutable_comparisons()) comparisons_.push_back(std::move(comparison));
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  void Import() {
    if (absl::Status status = edge_.Admit(caller_, project_, "/rlhf.v1.FeedbackService/ImportComparisons");
        !status.ok()) {
      return Finish(ToGrpc(status));
    }
    sets_->Import(caller_.subject, project_, set_, std::move(comparisons_),
                  [this](absl::StatusOr<v1::ImportComparisonsResponse> result) {
                    if (result.ok()) {
                      CountComparisons(edge_, "import", static_cast<double>(result->imported()));
                      *response_ = *std::move(result);
                    }
                    Finish(ToGrpc(result.status()));
                  });
  }

  const Edge& edge_;
  ComparisonSets* const sets_;
  const Caller caller_;
  v1::ImportComparisonsResponse* const response_;
  v1::ImportComparisonsRequest request_;
  std::string project_, set_;
  size_t bytes_ = 0;
  std::vector<v1::Comparison> comparisons_;
};

class FeedbackService final : public v1::FeedbackService::CallbackService {
 public:
  explicit FeedbackService(const Edge& edge)
      : edge_(edge), sets_(edge.loop, edge.background, edge.store, edge.artifacts, edge.oversight) {}

  grpc::ServerUnaryReactor* NextTasks(grpc::CallbackServerContext* context, const v1::NextTasksRequest* request,
                                      v1::NextTasksResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::NextTasksRequest& r, Done<v1::NextTasksResponse> done) {
          if (r.max_tasks() < 0 || r.max_tasks() > kMaxAnswers) {
            return done(absl::InvalidArgumentError(
                absl::StrCat("max_tasks: expected 1 to ", kMaxAnswers, ", found ", r.max_tasks())));
          }
          if (r.max_tasks() == 0) r.set_max_tasks(1);
          r.set_wait_ms(BoundedWaitMs(r.wait_ms()));
          Next(caller, r, edge_.loop->clock().Now() + absl::Milliseconds(r.wait_ms()), std::move(done));
        },
        Waits::kYes);
  }
  grpc::ServerUnaryReactor* SubmitFeedback(grpc::CallbackServerContext* context,
                                           const v1::SubmitFeedbackRequest* request,
                                           v1::SubmitFeedbackResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::SubmitFeedbackRequest& r, Done<v1::SubmitFeedbackResponse> done) {
                    if (absl::Status status = ResolveAnswers(caller, &r); !status.ok()) return done(status);
                    edge_.feedback->Submit(
                        edge_.tokens->Pseudonym(caller.subject), r,
                        [this, done = std::move(done)](absl::StatusOr<v1::SubmitFeedbackResponse> result) mutable {
                          if (result.ok()) Count(*result);
                          done(std::move(result));
                        });
                  });
  }
  grpc::ServerUnaryReactor* SkipTask(grpc::CallbackServerContext* context, const v1::SkipTaskRequest* request,
                                     v1::SkipTaskResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::SkipTaskRequest& r, Done<v1::SkipTaskResponse> done) {
                    const absl::StatusOr<std::string> id = Known(caller, r.job_id(), "SkipTask");
                    if (!id.ok()) return done(id.status());
                    r.set_job_id(*id);
                    edge_.feedback->Skip(edge_.tokens->Pseudonym(caller.subject), r, std::move(done));
                  });
  }
  grpc::ServerReadReactor<v1::ImportComparisonsRequest>* ImportComparisons(
      grpc::CallbackServerContext* context, v1::ImportComparisonsResponse* response) override {
    return new ImportStream(edge_, &sets_, CallerOf(*context), response);
  }
  grpc::ServerWriteReactor<v1::Comparison>* ExportComparisons(grpc::CallbackServerContext* context,
                                                              const v1::ExportComparisonsRequest* request) override {
    return ExportStream::Run(std::make_shared<ExportStream>(edge_, &sets_, CallerOf(*context), *request));
  }
  grpc::ServerUnaryReactor* GetFeedbackStats(grpc::CallbackServerContext* context,
                                             const v1::GetFeedbackStatsRequest* request,
                                             v1::GetFeedbackStatsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller,
                                  v1::GetFeedbackStatsRequest& r) -> absl::StatusOr<v1::GetFeedbackStatsResponse> {
                    RLHF_ASSIGN_OR_RETURN(const std::string id, Known(caller, r.job_id(), "GetFeedbackStats"));
                    return edge_.feedback->Stats(id);
                  }));
  }
  grpc::ServerUnaryReactor* ForgetRater(grpc::CallbackServerContext* context, const v1::ForgetRaterRequest* request,
                                        v1::ForgetRaterResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([](const Caller&, v1::ForgetRaterRequest&) -> absl::StatusOr<v1::ForgetRaterResponse> {
                    return WithReason(
                        absl::UnimplementedError("forgetting a rater is not in this release; its shape is final"),
                        v1::NOT_IN_THIS_RELEASE);
                  }));
  }

 private:
  // Looks again while the caller waits: a pipeline may not have come to its collect stage yet.
  void Next(const Caller& caller, const v1::NextTasksRequest& r, absl::Duration deadline,
            Done<v1::NextTasksResponse> done) {
    const absl::StatusOr<CollectTarget> target =
        FindCollect(edge_, caller, r.job_id(), r.project(), "/rlhf.v1.FeedbackService/NextTasks");
    if (!target.ok()) return done(target.status());
    const absl::Duration left = deadline - edge_.loop->clock().Now();
    if (!target->job_id.empty()) {
      v1::NextTasksRequest resolved = r;
      resolved.set_job_id(target->job_id);
      resolved.set_wait_ms(BoundedWaitMs(static_cast<int32_t>(absl::ToInt64Milliseconds(left))));
      return edge_.feedback->NextTasks(
          edge_.tokens->Pseudonym(caller.subject), resolved,
          [more = target->more_to_come, done = std::move(done)](absl::StatusOr<v1::NextTasksResponse> result) mutable {
            if (result.ok() && more) result->set_closed(false);
            done(std::move(result));
          });
    }
    if (target->closed || left <= absl::ZeroDuration()) {
      v1::NextTasksResponse response;
      response.set_closed(target->closed);
      if (!target->last_id.empty()) {
        if (const auto stats = edge_.feedback->Stats(target->last_id); stats.ok()) {
          response.set_answered(stats->answered());
          response.set_wanted(stats->wanted());
        }
      }
      return done(std::move(response));
    }
    edge_.loop->PostAfter(std::min(kLookAgain, left), [this, caller, r, deadline, done = std::move(done)]() mutable {
      Next(caller, r, deadline, std::move(done));
    });
  }

  // A collect job that has, or had, tasks.
  absl::StatusOr<std::string> Known(const Caller& caller, const std::string& reference, const char* method) const {
    RLHF_ASSIGN_OR_RETURN(const CollectTarget target, FindCollect(edge_, caller, reference, "", method));
    if (!target.job_id.empty()) return target.job_id;
    if (!target.last_id.empty()) return target.last_id;
    return WithReason(absl::FailedPreconditionError("no comparisons are being collected there now"),
                      v1::JOB_NOT_ACTIVE);
  }

  absl::Status ResolveAnswers(const Caller& caller, v1::SubmitFeedbackRequest* r) const {
    if (r->answers_size() > kMaxAnswers) {
      return absl::InvalidArgumentError(
          absl::StrCat("answers: expected at most ", kMaxAnswers, ", found ", r->answers_size()));
    }
    std::map<std::string, std::string> ids;
    for (v1::Answer& answer : *r->mutable_answers()) {
      std::string& id = ids[answer.job_id()];
      if (id.empty()) {
        RLHF_ASSIGN_OR_RETURN(id, Known(caller, answer.job_id(), "/rlhf.v1.FeedbackService/SubmitFeedback"));
      }
      answer.set_job_id(id);
    }
    return absl::OkStatus();
  }

  void Count(const v1::SubmitFeedbackResponse& response) const {
    double accepted = 0;
    for (const v1::AnswerVerdict& verdict : response.verdicts()) accepted += verdict.accepted() ? 1 : 0;
    CountComparisons(edge_, "rater", accepted);
  }

  const Edge& edge_;
  ComparisonSets sets_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeFeedbackService(const Edge& edge) {
  return std::make_unique<FeedbackService>(edge);
}

}  // namespace rlhf::coordinator
