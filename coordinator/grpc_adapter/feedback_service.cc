#include "rlhf/v1/feedback_service.grpc.pb.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/job_state.h"
#include "coordinator/comparison_sets.h"
#include "coordinator/feedback/agreement.h"
#include "coordinator/grpc_adapter/collect_lookup.h"
#include "coordinator/grpc_adapter/comparison_streams.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/lineage.h"
#include "coordinator/page_limit.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(200);
constexpr int kMaxAnswers = 1000;

class FeedbackService final : public v1::FeedbackService::CallbackService {
 public:
  explicit FeedbackService(const Edge& edge)
      : edge_(edge),
        sets_(edge.loop, edge.artifact_work, edge.store, edge.artifacts, edge.oversight, edge.feedback, edge.data_dir) {
  }

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
                    const absl::StatusOr<std::string> id = Known(caller, r.job_id());
                    if (!id.ok()) return done(id.status());
                    r.set_job_id(*id);
                    edge_.feedback->Skip(edge_.tokens->Pseudonym(caller.subject), r, std::move(done));
                  });
  }
  grpc::ServerReadReactor<v1::ImportComparisonsRequest>* ImportComparisons(
      grpc::CallbackServerContext* context, v1::ImportComparisonsResponse* response) override {
    return ImportStreamOf(edge_, &sets_, *context, response);
  }
  grpc::ServerWriteReactor<v1::Comparison>* ExportComparisons(grpc::CallbackServerContext* context,
                                                              const v1::ExportComparisonsRequest* request) override {
    return ExportStreamOf(edge_, &sets_, *context, *request);
  }
  grpc::ServerUnaryReactor* GetFeedbackStats(grpc::CallbackServerContext* context,
                                             const v1::GetFeedbackStatsRequest* request,
                                             v1::GetFeedbackStatsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller,
                                  v1::GetFeedbackStatsRequest& r) -> absl::StatusOr<v1::GetFeedbackStatsResponse> {
                    RLHF_ASSIGN_OR_RETURN(const std::string id, Known(caller, r.job_id()));
                    return edge_.feedback->Stats(id);
                  }));
  }
  grpc::ServerUnaryReactor* GetAgreement(grpc::CallbackServerContext* context, const v1::GetAgreementRequest* request,
                                         v1::AgreementReport* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::GetAgreementRequest& r, Done<v1::AgreementReport> done) {
                    Gather(caller, r.job_id(), r.project(),
                           [this, done = std::move(done)](absl::StatusOr<Judgements> all) mutable {
                             if (!all.ok()) return done(all.status());
                             edge_.background->Run([all = *std::move(all), done = std::move(done)]() mutable {
                               done(MeasureAgreement(*all));
                             });
                           });
                  });
  }
  grpc::ServerUnaryReactor* FreezeSet(grpc::CallbackServerContext* context, const v1::FreezeSetRequest* request,
                                      v1::ComparisonSet* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::FreezeSetRequest& r, Done<v1::ComparisonSet> done) {
          r.set_project(Edge::ProjectFor(caller, r.project()));
          // Where the set and its alias go; what it is made of may be read, which Gather sees to.
          absl::Status status = edge_.Admit(caller, r.project());
          if (!status.ok()) return done(status);
          Gather(caller, r.job_id(), r.project(),
                 [this, subject = caller.subject, r, done = std::move(done)](auto all) mutable {
                   if (!all.ok()) return done(all.status());
                   edge_.background->Run([this, subject, r, all = *std::move(all), done = std::move(done)]() mutable {
                     Freeze(subject, r, std::move(all), std::move(done));
                   });
                 });
        });
  }
  grpc::ServerUnaryReactor* ListSets(grpc::CallbackServerContext* context, const v1::ListSetsRequest* request,
                                     v1::ListSetsResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ListSetsRequest& r) -> absl::StatusOr<v1::ListSetsResponse> {
          const std::string project = Edge::ProjectFor(caller, r.project());
          RLHF_RETURN_IF_ERROR(edge_.Admit(caller, project));
          RLHF_ASSIGN_OR_RETURN(const int size, PageSize(r.page()));
          int64_t from = 0;
          if (!r.page().page_token().empty() && !absl::SimpleAtoi(r.page().page_token(), &from))
            return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
          const std::vector<v1::ComparisonSet> all = edge_.feedback->sets().List(project, r.name());
          v1::ListSetsResponse response;
          PageLimit page(size);
          for (size_t i = static_cast<size_t>(from); i < all.size(); ++i) {
            if (!page.Take(all[i].ByteSizeLong())) {
              response.set_next_page_token(absl::StrCat(i));
              break;
            }
            *response.add_sets() = all[i];
          }
          return response;
        }));
  }
  grpc::ServerUnaryReactor* ForgetRater(grpc::CallbackServerContext* context, const v1::ForgetRaterRequest* request,
                                        v1::ForgetRaterResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::ForgetRaterRequest& r, Done<v1::ForgetRaterResponse> done) {
          if (absl::Status status = edge_.Admit(caller, "*"); !status.ok()) return done(status);
          if (r.rater().empty())
            return done(absl::InvalidArgumentError("rater: expected a pseudonym or a subject, found nothing"));
          Forget(caller.subject, r.rater(), std::move(done));
        });
  }

 private:
  using Judgements = std::shared_ptr<const std::vector<v1::Comparison>>;

  // All comparisons that a reference means; long sets are read in the background.
  void Gather(const Caller& caller, const std::string& reference, const std::string& project, Done<Judgements> done) {
    if (absl::StartsWith(reference, "set:")) {
      const std::string owner = Edge::ProjectFor(caller, project);
      if (absl::Status status = edge_.Admit(caller, owner); !status.ok()) return done(status);
      return OffLoop<Judgements>(
          edge_.loop, edge_.background,
          [this, owner, set = reference.substr(4)]() -> absl::StatusOr<Judgements> {
            RLHF_ASSIGN_OR_RETURN(std::vector<v1::Comparison> all, sets_.ReadAll(owner, set));
            return std::make_shared<const std::vector<v1::Comparison>>(std::move(all));
          },
          std::move(done));
    }
    const absl::StatusOr<std::string> id = Known(caller, reference);
    if (!id.ok()) return done(id.status());
    done(std::make_shared<const std::vector<v1::Comparison>>(edge_.feedback->Comparisons(*id)));
  }

  // In the background.
  void Freeze(const std::string& subject, const v1::FreezeSetRequest& request, Judgements all,
              Done<v1::ComparisonSet> done) {
    std::set<std::string> excluded;
    std::map<std::string, std::string> unmet;
    for (const std::string& rater : request.exclude_raters()) unmet[PseudonymOf(edge_, rater)] = rater;
    for (const auto& [pseudonym, rater] : unmet) excluded.insert(pseudonym);
    for (const v1::Comparison& comparison : *all) unmet.erase(comparison.rater());
    if (absl::Status status = NothingToLeaveOut(unmet); !status.ok()) {
      return edge_.loop->Post([done = std::move(done), status]() mutable { done(status); });
    }
    if (request.exclude_flagged()) {
      const v1::AgreementReport report = MeasureAgreement(*all);
      for (const v1::RaterQuality& rater : report.raters()) {
        if (rater.flagged()) excluded.insert(rater.rater());
      }
    }
    edge_.loop->Post([this, subject, request, all = std::move(all), excluded = std::move(excluded),
                      done = std::move(done)]() mutable {
      sets_.Freeze(subject, request, std::move(all), std::move(excluded), std::move(done));
    });
  }

  // Whether somebody with a token, also one that works no more, appears so.
  bool HasToken(const std::string& pseudonym) const {
    const std::vector<v1::TokenRow> tokens = edge_.tokens->List();
    return std::any_of(tokens.begin(), tokens.end(), [&](const v1::TokenRow& token) {
      return edge_.tokens->Pseudonym(token.subject()) == pseudonym;
    });
  }

  // A rater by a pseudonym, or by a token's subject. The most judgements are of jobs that have ended: these are read
  // beside the loop.
  void Forget(const std::string& subject, const std::string& named, Done<v1::ForgetRaterResponse> done) {
    const std::string rater = PseudonymOf(edge_, named);
    std::set<std::string> ended;
    edge_.jobs->Visit(0, [&ended](const v1::Job& job) {
      if (job.spec().has_collect() && IsTerminal(job.state())) ended.insert(job.id());
    });
    OffLoop<ForgottenRows>(
        edge_.loop, edge_.background,
        [feedback = edge_.feedback, rater, ended]() -> absl::StatusOr<ForgottenRows> {
          return feedback->FindAnswers(rater, ended);
        },
        [this, subject, named, rater, ended, done = std::move(done)](absl::StatusOr<ForgottenRows> found) mutable {
          ForgetFound(subject, named, rater, ended, *std::move(found), std::move(done));
        });
  }
  void ForgetFound(const std::string& subject, const std::string& named, const std::string& rater,
                   const std::set<std::string>& ended, ForgottenRows found, Done<v1::ForgetRaterResponse> done) {
    const std::vector<v1::Job> all = AllJobs(*edge_.jobs);
    std::vector<std::string> others;
    for (const v1::Job& job : all) {
      if (job.spec().has_collect() && ended.count(job.id()) == 0) others.push_back(job.id());
    }
    edge_.feedback->Forget(rater, others, &found);
    std::map<std::string, std::string> edits;  // SFT data made of the rater's edits or answers: its digest by job
    for (const v1::Job& job : all) {
      const auto made = job.result().artifacts().find("edits");
      if (made != job.result().artifacts().end() && found.edited.count(job.id()) > 0) edits[job.id()] = made->second;
    }
    WriteBatch batch;
    for (WriteBatch::Op& op : found.batch.ops) {
      // Rows of a job that was deleted meanwhile do not come again.
      if (edge_.jobs->Find(op.key.substr(0, op.key.find('/'))) != nullptr) batch.ops.push_back(std::move(op));
    }
    v1::ForgetRaterResponse response;
    response.set_rater(rater);
    response.set_removed(found.removed);
    std::set<std::string> digests;
    for (v1::ComparisonSet& set : edge_.feedback->sets().Forget(rater, &batch)) {
      digests.insert(set.digest());
      response.add_used_by(absl::StrCat("set ", set.project(), "/", set.name(), " version ", set.version(), " ",
                                        set.digest(), ": ", set.raters().at(rater), " comparisons"));
      // Who was left out of a job's set is not in its edits either.
      if (const auto made = edits.find(set.name()); made != edits.end() && set.made_by() == set.name()) {
        digests.insert(made->second);
        response.add_used_by(absl::StrCat("edits ", made->second, " of job ", set.name()));
      }
      *response.add_sets() = std::move(set);
    }
    for (const DerivedModel& model : ModelsMadeFrom(all, digests)) {
      response.add_models(model.digest);
      response.add_used_by(absl::StrCat("model ", model.digest, " of job ", model.job_id));
    }
    edge_.oversight->Audit(subject, "rater.forget", rater, "done",
                           {{"removed", absl::StrCat(response.removed())},
                            {"sets", absl::StrCat(response.sets_size())},
                            {"models", absl::StrCat(response.models_size())}},
                           &batch);
    edge_.store->Commit(std::move(batch), [this, subject, rater, named, jobs = std::move(found.jobs), response,
                                           done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      edge_.loop->Post([this, subject, rater, named, jobs, response, done = std::move(done)]() mutable {
        edge_.feedback->Reload(jobs);
        sets_.Forget(subject, rater,
                     [this, rater, named, response, done = std::move(done)](absl::StatusOr<int64_t> removed) mutable {
                       if (!removed.ok()) return done(removed.status());
                       response.set_removed(response.removed() + *removed);
                       if (response.removed() == 0 && response.sets().empty() && !HasToken(rater)) {
                         return done(absl::NotFoundError(absl::StrCat(
                             "rater: nobody is, or judged as, \"", named,
                             "\": expected a pseudonym (`rlhfctl feedback agreement`) or a token's subject "
                             "(`rlhfctl token list`)")));
                       }
                       done(std::move(response));
                     });
      });
    });
  }

  // Looks again while the caller waits: a pipeline may not have come to its collect stage yet.
  void Next(const Caller& caller, const v1::NextTasksRequest& r, absl::Duration deadline,
            Done<v1::NextTasksResponse> done) {
    const absl::StatusOr<CollectTarget> target = FindCollect(edge_, caller, r.job_id(), r.project());
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
  absl::StatusOr<std::string> Known(const Caller& caller, const std::string& reference) const {
    RLHF_ASSIGN_OR_RETURN(const CollectTarget target, FindCollect(edge_, caller, reference, ""));
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
        RLHF_ASSIGN_OR_RETURN(id, Known(caller, answer.job_id()));
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
