#include "rlhf/v1/job_service.grpc.pb.h"

#include <type_traits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/auth/authorizer.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/grpc_adapter/watch_job.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/ledger.h"
#include "coordinator/names.h"
#include "coordinator/page_limit.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kBookmarkPeriod = absl::Seconds(5);
constexpr int kEventsAPage = 500;
// A filter may look at so many rows a call; the page token goes on from there.
constexpr int kSamplesLookedAt = 5000;

class JobService final : public v1::JobService::CallbackService {
 public:
  explicit JobService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* SubmitJob(grpc::CallbackServerContext* context, const v1::SubmitJobRequest* request,
                                      v1::SubmitJobResponse* response) override {
    if (const std::vector<v1::SpecProblem> large = TooLarge(request->spec()); !large.empty())
      return AtOnce(context, WithReason(absl::InvalidArgumentError(JoinProblems(large)), v1::INVALID_SPEC));
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::SubmitJobRequest& r, Done<v1::SubmitJobResponse> done) {
                    absl::Status status = CheckRequestId(r.request_id());
                    if (status.ok()) status = TakeProject(caller, r.mutable_spec());
                    if (!status.ok()) return done(status);
                    edge_.jobs->Submit(caller.subject, r, ShownTo(caller, std::move(done)));
                  });
  }
  grpc::ServerUnaryReactor* ValidateJob(grpc::CallbackServerContext* context, const v1::ValidateJobRequest* request,
                                        v1::ValidateJobResponse* response) override {
    if (const std::vector<v1::SpecProblem> large = TooLarge(request->spec()); !large.empty()) {
      response->mutable_problems()->Assign(large.begin(), large.end());
      return AtOnce(context, absl::OkStatus());
    }
    if (request->uploads_size() > kMostEntries) {
      return AtOnce(context, absl::InvalidArgumentError(absl::StrCat("uploads: expected at most ", kMostEntries,
                                                                     ", found ", request->uploads_size())));
    }
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ValidateJobRequest& r) -> absl::StatusOr<v1::ValidateJobResponse> {
          RLHF_RETURN_IF_ERROR(TakeProject(caller, r.mutable_spec()));
          return edge_.jobs->Validate(r);
        }));
  }
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const v1::GetJobRequest* request,
                                   v1::Job* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::GetJobRequest& r) -> absl::StatusOr<v1::Job> {
                    RLHF_ASSIGN_OR_RETURN(v1::Job job, edge_.FindJob(caller, r.job_id(), r.project()));
                    Show(caller, &job);
                    return job;
                  }));
  }
  grpc::ServerUnaryReactor* ListJobs(grpc::CallbackServerContext* context, const v1::ListJobsRequest* request,
                                     v1::ListJobsResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ListJobsRequest& r) -> absl::StatusOr<v1::ListJobsResponse> {
          RLHF_RETURN_IF_ERROR(PageSize(r.page()).status());
          if (r.project().empty() && caller.project != "*") r.set_project(caller.project);
          if (!r.project().empty()) {
            RLHF_RETURN_IF_ERROR(edge_.Admit(caller, r.project()));
          }
          RLHF_ASSIGN_OR_RETURN(v1::ListJobsResponse page, edge_.jobs->List(r));
          for (v1::Job& job : *page.mutable_jobs()) Show(caller, &job);
          return page;
        }));
  }
  grpc::ServerWriteReactor<v1::JobEvent>* WatchJob(grpc::CallbackServerContext* context,
                                                   const v1::WatchJobRequest* request) override {
    return WatchJobStream::Run(std::make_shared<WatchJobStream>(edge_, CallerOf(*context), *request, kBookmarkPeriod),
                               *context);
  }
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context, const v1::CancelJobRequest* request,
                                      v1::Job* response) override {
    return Change(context, request, response, &Jobs::Cancel);
  }
  grpc::ServerUnaryReactor* PauseJob(grpc::CallbackServerContext* context, const v1::PauseJobRequest* request,
                                     v1::Job* response) override {
    return Change(context, request, response, &Jobs::Pause);
  }
  grpc::ServerUnaryReactor* ResumeJob(grpc::CallbackServerContext* context, const v1::ResumeJobRequest* request,
                                      v1::Job* response) override {
    return Change(context, request, response, &Jobs::Resume);
  }
  grpc::ServerUnaryReactor* DeleteJob(grpc::CallbackServerContext* context, const v1::DeleteJobRequest* request,
                                      v1::DeleteJobResponse* response) override {
    return Change(context, request, response, &Jobs::Delete);
  }
  grpc::ServerUnaryReactor* GetLedger(grpc::CallbackServerContext* context, const v1::GetLedgerRequest* request,
                                      v1::GetLedgerResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::GetLedgerRequest& r, Done<v1::GetLedgerResponse> done,
                         std::function<bool()> gone) { Ledger(caller, r, std::move(done), std::move(gone)); });
  }
  grpc::ServerUnaryReactor* ListSamples(grpc::CallbackServerContext* context, const v1::ListSamplesRequest* request,
                                        v1::ListSamplesResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::ListSamplesRequest& r, Done<v1::ListSamplesResponse> done) {
                    Samples(caller, r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* ListMetrics(grpc::CallbackServerContext* context, const v1::ListMetricsRequest* request,
                                        v1::ListMetricsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::ListMetricsRequest& r) { return Metrics(caller, r); }));
  }
  grpc::ServerUnaryReactor* ExplainJob(grpc::CallbackServerContext* context, const v1::ExplainJobRequest* request,
                                       v1::ExplainJobResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ExplainJobRequest& r) -> absl::StatusOr<v1::ExplainJobResponse> {
          RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge_.FindJob(caller, r.job_id(), ""));
          return edge_.jobs->Explain(job.id(), Edge::SeenBy(caller));
        }));
  }

 private:
  // Answers at once: the loop never has the request.
  static grpc::ServerUnaryReactor* AtOnce(grpc::CallbackServerContext* context, const absl::Status& status) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  // The caller's project where the specification names none.
  absl::Status TakeProject(const Caller& caller, v1::JobSpec* spec) const {
    spec->set_project(Edge::ProjectFor(caller, spec->project()));
    return edge_.Admit(caller, spec->project());
  }

  // An answer, with its job as the caller may read it.
  template <typename Response>
  Done<Response> ShownTo(const Caller& caller, Done<Response> done) const {
    return [this, caller, done = std::move(done)](absl::StatusOr<Response> response) mutable {
      // Changes are answered on the store's thread, too.
      edge_.loop->Post([this, caller, done = std::move(done), response = std::move(response)]() mutable {
        if (response.ok()) Show(caller, &*response);
        done(std::move(response));
      });
    };
  }
  void Show(const Caller& caller, v1::Job* job) const {
    *job = edge_.jobs->Shown(std::move(*job), Edge::SeenBy(caller));
  }
  void Show(const Caller& caller, v1::SubmitJobResponse* response) const { Show(caller, response->mutable_job()); }
  void Show(const Caller&, v1::DeleteJobResponse*) const {}

  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Change(grpc::CallbackServerContext* context, const Request* request, Response* response,
                                   void (Jobs::*change)(const std::string&, const Request&, Done<Response>)) {
    return OnLoop(edge_, context, request, response,
                  [this, change](const Caller& caller, Request& r, Done<Response> done) {
                    const absl::StatusOr<v1::Job> job = edge_.FindJob(caller, r.job_id(), "");
                    if (!job.ok()) return done(job.status());
                    if constexpr (std::is_same_v<Request, v1::CancelJobRequest>) {
                      if (absl::Status status = CheckRemark("reason", r.reason()); !status.ok()) return done(status);
                    }
                    r.set_job_id(job->id());
                    (edge_.jobs->*change)(caller.subject, r, ShownTo(caller, std::move(done)));
                  });
  }

  void Ledger(const Caller& caller, const v1::GetLedgerRequest& r, Done<v1::GetLedgerResponse> done,
              std::function<bool()> gone) const {
    const absl::StatusOr<v1::Job> job = edge_.FindJob(caller, r.job_id(), "");
    if (!job.ok()) return done(job.status());
    // A pipeline's ledger is its stages'.
    auto checking = std::make_shared<Checking>();
    checking->ids.assign(job->children().begin(), job->children().end());
    checking->ids.push_back(job->id());
    checking->done = std::move(done);
    checking->gone = std::move(gone);
    for (const std::string& id : checking->ids)
      AddCounts(edge_.sampling->Counts(id), checking->response.mutable_counts());
    if (!r.check()) return checking->done(std::move(checking->response));
    CheckNext(std::move(checking));
  }

  // A ledger that is being checked, job by job.
  struct Checking {
    std::vector<std::string> ids;
    size_t next = 0;
    v1::GetLedgerResponse response;
    Done<v1::GetLedgerResponse> done;
    std::function<bool()> gone;  // nobody waits for it any more
  };
  void CheckNext(std::shared_ptr<Checking> checking) const {
    if (checking->next == checking->ids.size()) {
      // Of a service that has run for long it takes long: heartbeats do not wait for it.
      return edge_.checks->Run([loop = edge_.loop, oversight = edge_.oversight, checking] {
        v1::VerifyAuditResponse audit = oversight->audit().Verify(checking->gone);
        loop->Post([checking, audit = std::move(audit)] {
          if (!audit.intact()) {
            checking->response.add_violations(
                absl::StrCat("audit log: record ", audit.first_bad_sequence(), ": ", audit.problem()));
          }
          checking->done(std::move(checking->response));
        });
      });
    }
    const std::string id = checking->ids[checking->next++];
    const auto checked = [this, id, checking](const absl::StatusOr<Sampling::Findings>& findings) {
      if (!findings.ok()) return checking->done(findings.status());
      v1::GetLedgerResponse& response = checking->response;
      const std::string prefix = checking->ids.size() == 1 ? "" : absl::StrCat(id, ": ");
      for (const std::string& violation : findings->violations) response.add_violations(prefix + violation);
      for (const std::string& note : findings->notes) response.add_notes(prefix + note);
      const absl::Status status =
          edge_.store->Scan(Table::kMeta, CommittedStepPrefix(id), [&](absl::string_view, absl::string_view value) {
            response.add_steps()->ParseFromArray(value.data(), static_cast<int>(value.size()));
            return true;
          });
      if (!status.ok()) return checking->done(status);
      CheckNext(checking);
    };
    edge_.sampling->Check(id, edge_.checks, checking->gone, checked);
  }

  void Samples(const Caller& caller, const v1::ListSamplesRequest& r, Done<v1::ListSamplesResponse> done) const {
    const absl::StatusOr<int> page_size = PageSize(r.page());
    if (!page_size.ok()) return done(page_size.status());
    const absl::StatusOr<v1::Job> job = edge_.FindJob(caller, r.job_id(), "");
    if (!job.ok()) return done(job.status());
    if (!job->children().empty()) {
      return done(absl::FailedPreconditionError(absl::StrCat(
          "a pipeline has no samples of its own; ask for one of its stages: ", absl::StrJoin(job->children(), ", "))));
    }
    std::string after;
    if (!absl::WebSafeBase64Unescape(r.page().page_token(), &after))
      return done(absl::InvalidArgumentError("page_token: expected the one of the previous answer"));
    // Hundreds of payloads: read beside the loop.
    OffLoop<v1::ListSamplesResponse>(
        edge_.loop, edge_.pages,
        [this, r, job_id = job->id(), page_size = *page_size, after = std::move(after)]() mutable {
          return ReadSamples(r, job_id, page_size, std::move(after));
        },
        std::move(done));
  }
  // Any thread.
  absl::StatusOr<v1::ListSamplesResponse> ReadSamples(const v1::ListSamplesRequest& r, const std::string& job_id,
                                                      int page_size, std::string after) const {
    v1::ListSamplesResponse response;
    int looked_at = 0;
    size_t bytes = 0;  // below two pages': what is read at once is at most one
    do {
      std::string next;
      const PageLimit page(page_size - response.samples_size());
      RLHF_ASSIGN_OR_RETURN(std::vector<v1::SampleView> views,
                            edge_.sampling->List(job_id, r.has_step() ? r.step() : -1, after, page, &next));
      looked_at += static_cast<int>(views.size());
      for (v1::SampleView& view : views) {
        if (!r.category().empty() && view.sample().prompt().category() != r.category()) continue;
        bytes += view.ByteSizeLong();
        *response.add_samples() = std::move(view);
      }
      after = next;
    } while (!after.empty() && response.samples_size() < page_size && bytes < kPageBytes &&
             looked_at < kSamplesLookedAt);
    response.set_next_page_token(absl::WebSafeBase64Escape(after));
    return response;
  }

  absl::StatusOr<v1::ListMetricsResponse> Metrics(const Caller& caller, const v1::ListMetricsRequest& r) const {
    RLHF_ASSIGN_OR_RETURN(const int page_size, PageSize(r.page()));
    RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge_.FindJob(caller, r.job_id(), ""));
    int64_t from = 0;
    if (!r.page().page_token().empty() && (!absl::SimpleAtoi(r.page().page_token(), &from) || from < 0)) {
      return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
    }
    v1::ListMetricsResponse response;
    PageLimit page(page_size);
    while (true) {
      RLHF_ASSIGN_OR_RETURN(std::vector<v1::JobEvent> events, edge_.events->Read(job.id(), from, kEventsAPage));
      for (v1::JobEvent& event : events) {
        if (event.has_metrics() && !page.Take(event.metrics().ByteSizeLong())) {
          response.set_next_page_token(absl::StrCat(from));
          return response;
        }
        from = event.sequence();
        if (event.has_metrics()) *response.add_points() = std::move(*event.mutable_metrics());
      }
      if (static_cast<int>(events.size()) < kEventsAPage) return response;
    }
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeJobService(const Edge& edge) {
  return std::make_unique<JobService>(edge);
}

}  // namespace rlhf::coordinator
