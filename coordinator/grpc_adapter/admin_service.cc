#include "rlhf/v1/admin_service.grpc.pb.h"

#include <algorithm>
#include <list>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/digest.h"
#include "common/canonical_bytes.h"
#include "coordinator/grpc_adapter/backup_stream.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kRememberedAnswers = 1000;

v1::Worker WorkerOf(const Session& session, absl::Duration now) {
  v1::Worker worker;
  worker.set_instance_id(session.identity.instance_id());
  worker.set_role(session.identity.role());
  worker.set_state(session.cordoned ? v1::CORDONED : session.draining ? v1::DRAINING : session.state);
  worker.set_address(session.identity.address());
  worker.set_build_version(session.identity.build_version());
  worker.set_device(session.identity.device());
  worker.set_slots(session.identity.slots());
  worker.set_leased(session.last.progress_size());
  *worker.mutable_policy() = session.last.policy();
  worker.set_job_id(!session.last.group_job_id().empty() ? session.last.group_job_id()
                    : session.last.progress().empty()    ? ""
                                                         : session.last.progress(0).id().job_id());
  worker.set_seconds_since_heartbeat(absl::ToDoubleSeconds(now - session.last_heartbeat));
  return worker;
}

// One that is not registered.
v1::Worker Away(const std::string& instance, v1::Role role, v1::WorkerState state) {
  v1::Worker worker;
  worker.set_instance_id(instance);
  worker.set_role(role);
  worker.set_state(state);
  worker.set_seconds_since_heartbeat(-1);
  return worker;
}

// Answers by request id. They hold secrets, so they are kept in memory only: after a restart the same request id makes
// a new token.
class RecentAnswers {
 public:
  absl::StatusOr<v1::CreateTokenResponse> Find(const std::string& key, const std::string& body) const {
    const auto it = answers_.find(key);
    if (it == answers_.end()) return absl::NotFoundError("");
    if (it->second.first == body) return it->second.second;
    return WithReason(absl::AlreadyExistsError("request_id: it was used for another token; use a new one"),
                      v1::REQUEST_ID_REUSED);
  }
  void Put(const std::string& key, const std::string& body, const v1::CreateTokenResponse& response) {
    if (!answers_.emplace(key, std::make_pair(body, response)).second) return;
    order_.push_back(key);
    if (order_.size() <= kRememberedAnswers) return;
    answers_.erase(order_.front());
    order_.pop_front();
  }

 private:
  std::map<std::string, std::pair<std::string, v1::CreateTokenResponse>> answers_;
  std::list<std::string> order_;
};

class AdminService final : public v1::AdminService::CallbackService {
 public:
  explicit AdminService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* ListWorkers(grpc::CallbackServerContext* context, const v1::ListWorkersRequest* request,
                                        v1::ListWorkersResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::ListWorkersRequest& r) { return Workers(caller, r); }));
  }
  grpc::ServerUnaryReactor* DrainWorker(grpc::CallbackServerContext* context, const v1::DrainWorkerRequest* request,
                                        v1::Worker* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::DrainWorkerRequest& r, Done<v1::Worker> done) {
                    absl::Status status = ForAll(caller);
                    if (status.ok()) status = edge_.fleet->Drain(r.instance_id());
                    if (!status.ok()) return done(status);
                    Record(caller, "worker.drain", r.instance_id(), WriteBatch(), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* CordonWorker(grpc::CallbackServerContext* context, const v1::CordonWorkerRequest* request,
                                         v1::Worker* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::CordonWorkerRequest& r, Done<v1::Worker> done) {
                    WriteBatch batch;
                    absl::Status status = ForAll(caller);
                    if (status.ok()) status = CheckText("instance_id", r.instance_id(), kLongestInstance);
                    if (status.ok()) status = edge_.fleet->Cordon(r.instance_id(), r.uncordon(), &batch);
                    if (!status.ok()) return done(status);
                    Record(caller, r.uncordon() ? "worker.uncordon" : "worker.cordon", r.instance_id(),
                           std::move(batch), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* CreateToken(grpc::CallbackServerContext* context, const v1::CreateTokenRequest* request,
                                        v1::CreateTokenResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::CreateTokenRequest& r, Done<v1::CreateTokenResponse> done) {
                    Create(caller, r, std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* ListTokens(grpc::CallbackServerContext* context, const v1::ListTokensRequest* request,
                                       v1::ListTokensResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::ListTokensRequest& r) { return List(caller, r); }));
  }
  grpc::ServerUnaryReactor* RevokeToken(grpc::CallbackServerContext* context, const v1::RevokeTokenRequest* request,
                                        v1::RevokeTokenResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::RevokeTokenRequest& r, Done<v1::RevokeTokenResponse> done) {
                    Revoke(caller, r.id(), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* GetQuota(grpc::CallbackServerContext* context, const v1::GetQuotaRequest* request,
                                     v1::Quota* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::GetQuotaRequest& r) -> absl::StatusOr<v1::Quota> {
                    const std::string project = Edge::ProjectFor(caller, r.project());
                    RLHF_RETURN_IF_ERROR(edge_.Admit(caller, project));
                    return edge_.quotas->Of(project, r.submitter());
                  }));
  }
  grpc::ServerUnaryReactor* SetQuota(grpc::CallbackServerContext* context, const v1::SetQuotaRequest* request,
                                     v1::Quota* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::SetQuotaRequest& r, Done<v1::Quota> done) {
                    ChangeQuota(caller, r.quota(), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* ListQuotas(grpc::CallbackServerContext* context, const v1::ListQuotasRequest* request,
                                       v1::ListQuotasResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        Directly([this](const Caller& caller, v1::ListQuotasRequest& r) -> absl::StatusOr<v1::ListQuotasResponse> {
          RLHF_ASSIGN_OR_RETURN(const int page_size, PageSize(r.page()));
          return edge_.quotas->List(caller.project, r.page().page_token(), page_size);
        }));
  }
  grpc::ServerWriteReactor<v1::BackupChunk>* Backup(grpc::CallbackServerContext* context,
                                                    const v1::BackupRequest* request) override {
    return BackupStream::Run(std::make_shared<BackupStream>(edge_, CallerOf(*context)), *context);
  }

 private:
  // The fleet works for all projects.
  absl::Status ForAll(const Caller& caller) const { return edge_.Admit(caller, "*"); }

  void ChangeQuota(const Caller& caller, v1::Quota quota, Done<v1::Quota> done) {
    quota.set_project(Edge::ProjectFor(caller, quota.project()));
    absl::Status status = Quotas::Check(quota);
    if (status.ok()) status = edge_.Admit(caller, quota.project());
    if (!status.ok()) return done(status);
    WriteBatch batch;
    edge_.quotas->Set(quota, &batch);
    const v1::Quota stored = edge_.quotas->Of(quota.project(), quota.submitter());
    edge_.oversight->Audit(caller.subject, "quota.set", absl::StrCat(quota.project(), "/", quota.submitter()),
                           "allowed",
                           {{"max_jobs", absl::StrCat(stored.max_jobs())},
                            {"max_learners", absl::StrCat(stored.max_learners())},
                            {"max_rollout_workers", absl::StrCat(stored.max_rollout_workers())},
                            {"max_score_requests", absl::StrCat(stored.max_score_requests())},
                            {"weight", absl::StrCat(stored.weight())}},
                           &batch);
    edge_.store->Commit(std::move(batch), [stored, done = std::move(done)](absl::Status committed) mutable {
      if (!committed.ok()) return done(committed);
      done(stored);
    });
  }

  // Workers are everybody's; what they work on is its project's to see.
  bool Sees(const Caller& caller, const std::string& job_id) const {
    if (caller.project == "*") return true;
    const absl::StatusOr<v1::Job> job = edge_.jobs->Get(job_id, "");
    return job.ok() && job->id() == job_id && job->spec().project() == caller.project;
  }

  absl::StatusOr<v1::ListWorkersResponse> Workers(const Caller& caller, const v1::ListWorkersRequest& r) const {
    RLHF_ASSIGN_OR_RETURN(const int page_size, PageSize(r.page()));
    const absl::Duration now = edge_.loop->clock().Now();
    std::vector<v1::Worker> workers;
    for (const Session* session : edge_.fleet->Sessions(r.role())) workers.push_back(WorkerOf(*session, now));
    for (const auto& [instance, role] : edge_.fleet->CordonedAway()) {
      if (r.role() == v1::ROLE_UNSPECIFIED || r.role() == role) workers.push_back(Away(instance, role, v1::CORDONED));
    }
    std::sort(workers.begin(), workers.end(),
              [](const v1::Worker& a, const v1::Worker& b) { return a.instance_id() < b.instance_id(); });
    v1::ListWorkersResponse response;
    for (v1::Worker& worker : workers) {
      if (worker.instance_id() <= r.page().page_token()) continue;
      if (response.workers_size() == page_size) {
        response.set_next_page_token(response.workers(page_size - 1).instance_id());
        break;
      }
      if (!Sees(caller, worker.job_id())) {
        worker.clear_job_id();
        worker.clear_policy();
      }
      *response.add_workers() = std::move(worker);
    }
    return response;
  }

  // Audits what was done to a worker, then answers with it as it is.
  void Record(const Caller& caller, const std::string& action, const std::string& instance, WriteBatch batch,
              Done<v1::Worker> done) {
    edge_.oversight->Audit(caller.subject, action, instance, "allowed", {}, &batch);
    edge_.store->Commit(std::move(batch), [this, instance, done = std::move(done)](absl::Status status) mutable {
      edge_.loop->Post([this, instance, status, done = std::move(done)]() mutable {
        if (!status.ok()) return done(status);
        for (const Session* session : edge_.fleet->Sessions(v1::ROLE_UNSPECIFIED)) {
          if (session->identity.instance_id() == instance) return done(WorkerOf(*session, edge_.loop->clock().Now()));
        }
        const std::map<std::string, v1::Role> cordoned = edge_.fleet->CordonedAway();
        const auto away = cordoned.find(instance);
        if (away == cordoned.end()) return done(Away(instance, v1::ROLE_UNSPECIFIED, v1::LOST));
        done(Away(instance, away->second, v1::CORDONED));
      });
    });
  }

  void Create(const Caller& caller, const v1::CreateTokenRequest& r, Done<v1::CreateTokenResponse> done) {
    Tokens::Request wanted;
    wanted.subject = r.subject();
    wanted.project = Edge::ProjectFor(caller, r.project());
    for (const int role : r.roles()) wanted.roles.push_back(static_cast<v1::TokenRole>(role));
    if (r.ttl_seconds() != 0) wanted.ttl = absl::Seconds(r.ttl_seconds());
    absl::Status status = edge_.Admit(caller, wanted.project);
    if (status.ok()) status = CheckRequestId(r.request_id());
    if (!status.ok()) return done(status);
    // Two projects may each have somebody of this name: the secret of one is not the other's.
    const std::string key =
        r.request_id().empty() ? "" : absl::StrCat(caller.project, "/", caller.subject, "/", r.request_id());
    const std::string body = artifact::Sha256Hex(CanonicalBytes(r));
    if (!key.empty()) {
      absl::StatusOr<v1::CreateTokenResponse> before = answers_.Find(key, body);
      if (!absl::IsNotFound(before.status())) return done(std::move(before));
    }
    WriteBatch batch;
    absl::StatusOr<Tokens::Minted> minted = edge_.tokens->PrepareMint(wanted, &batch);
    if (!minted.ok()) return done(minted.status());
    std::vector<std::string> roles;
    for (const v1::TokenRole role : wanted.roles) roles.push_back(RoleName(role));
    edge_.oversight->Audit(
        caller.subject, "token.create", minted->row.id(), "allowed",
        {{"subject", wanted.subject}, {"project", wanted.project}, {"roles", absl::StrJoin(roles, ",")}}, &batch);
    v1::CreateTokenResponse response;
    *response.mutable_token() = minted->row;
    response.set_secret(minted->secret);
    edge_.store->Commit(std::move(batch), [this, key, body, response = std::move(response),
                                           done = std::move(done)](absl::Status status) mutable {
      edge_.loop->Post([this, key, body, status, response = std::move(response), done = std::move(done)]() mutable {
        if (!status.ok()) {
          edge_.tokens->AbandonMint(response.token().id());
          return done(status);
        }
        edge_.tokens->ApplyMint(response.token().id());
        if (!key.empty()) answers_.Put(key, body, response);
        done(std::move(response));
      });
    });
  }

  absl::StatusOr<v1::ListTokensResponse> List(const Caller& caller, const v1::ListTokensRequest& r) const {
    RLHF_ASSIGN_OR_RETURN(const int page_size, PageSize(r.page()));
    size_t from = 0;
    if (!r.page().page_token().empty() && !absl::SimpleAtoi(r.page().page_token(), &from)) {
      return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
    }
    const std::vector<v1::TokenRow> rows = edge_.tokens->List();
    v1::ListTokensResponse response;
    for (; from < rows.size() && response.tokens_size() < page_size; ++from) {
      if (caller.project == "*" || caller.project == rows[from].project()) *response.add_tokens() = rows[from];
    }
    if (from < rows.size()) response.set_next_page_token(absl::StrCat(from));
    return response;
  }

  void Revoke(const Caller& caller, const std::string& id, Done<v1::RevokeTokenResponse> done) {
    for (const v1::TokenRow& row : edge_.tokens->List()) {
      if (row.id() != id) continue;
      absl::Status status = edge_.Admit(caller, row.project());
      if (!status.ok()) return done(status);
    }
    const bool somebody = edge_.tokens->AdminUntil() != absl::InfinitePast();
    if (somebody && edge_.tokens->AdminUntil(id) == absl::InfinitePast()) {
      return done(absl::FailedPreconditionError(
          absl::StrCat("the token ", id,
                       " is the last that is admin of all projects: nobody could create another; "
                       "make one first (`rlhfctl token create --role admin --project '*'`)")));
    }
    WriteBatch batch;
    if (absl::Status status = edge_.tokens->PrepareRevoke(id, &batch); !status.ok()) return done(status);
    edge_.oversight->Audit(caller.subject, "token.revoke", id, "allowed", {}, &batch);
    edge_.store->Commit(std::move(batch), [this, id, done = std::move(done)](absl::Status status) mutable {
      if (!status.ok()) return done(status);
      edge_.tokens->ApplyRevoke(id);
      done(v1::RevokeTokenResponse());
    });
  }

  const Edge& edge_;
  RecentAnswers answers_;  // loop thread
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(const Edge& edge) {
  return std::make_unique<AdminService>(edge);
}

}  // namespace rlhf::coordinator
