// quota get, set, list.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands/commands.h"
#include "cli/output.h"
#include "cli/pages.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

std::string Bound(int32_t value) {
  return value == 0 ? "-" : absl::StrCat(value);
}

int Print(const ConnectionFlags& connection, const google::protobuf::RepeatedPtrField<v1::Quota>& quotas) {
  if (connection.output == "json") {
    PrintJsonArray(quotas);
    return v1::EXIT_OK;
  }
  Table table({"PROJECT", "SUBMITTER", "JOBS", "LEARNERS", "ROLLOUT WORKERS", "SCORE REQUESTS", "WEIGHT"});
  for (const v1::Quota& quota : quotas) {
    table.Row({quota.project(), quota.submitter().empty() ? "(all)" : quota.submitter(), Bound(quota.max_jobs()),
               Bound(quota.max_learners()), Bound(quota.max_rollout_workers()), Bound(quota.max_score_requests()),
               absl::StrFormat("%g", quota.weight())});
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

int Get(const ConnectionFlags& connection, const std::string& submitter) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::GetQuotaRequest request;
  request.set_project(connection.project);
  request.set_submitter(submitter);
  google::protobuf::RepeatedPtrField<v1::Quota> quotas;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::AdminService::NewStub(*channel)->GetQuota(context.get(), request, quotas.Add()));
  if (!status.ok()) return Fail(status);
  return Print(connection, quotas);
}

int Set(const ConnectionFlags& connection, v1::Quota quota) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  quota.set_project(connection.project);
  v1::SetQuotaRequest request;
  *request.mutable_quota() = quota;
  google::protobuf::RepeatedPtrField<v1::Quota> quotas;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::AdminService::NewStub(*channel)->SetQuota(context.get(), request, quotas.Add()));
  if (!status.ok()) return Fail(status);
  return Print(connection, quotas);
}

int List(const ConnectionFlags& connection) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  google::protobuf::RepeatedPtrField<v1::Quota> quotas;
  v1::ListQuotasRequest request;
  request.mutable_page()->set_page_size(1000);
  const absl::Status status = EachPage(*v1::AdminService::NewStub(*channel), &v1::AdminService::Stub::ListQuotas,
                                       request, [&](const v1::ListQuotasResponse& page) {
                                         quotas.MergeFrom(page.quotas());
                                         return true;
                                       });
  if (!status.ok()) return Fail(status);
  return Print(connection, quotas);
}

}  // namespace

void AddQuotaCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  struct Flags {
    std::string submitter;
    int32_t jobs = 0, learners = 0, rollout_workers = 0, score_requests = 0;
    double weight = 1;
  };
  const auto flags = std::make_shared<Flags>();
  auto* quota = app.add_subcommand("quota", "What a project (--project), or a submitter in it, may use at once");
  quota->require_subcommand(1);
  auto* get = quota->add_subcommand("get", "Show one");
  get->add_option("--submitter", flags->submitter, "Only of this submitter; default: the project as a whole");
  get->callback([=, &connection] { *run = [=, &connection] { return Get(connection, flags->submitter); }; });
  quota->add_subcommand("list", "All that are set")->callback([=, &connection] {
    *run = [&connection] { return List(connection); };
  });
  auto* set = quota->add_subcommand("set", "Replace one; what is not given has no bound");
  set->add_option("--submitter", flags->submitter, "Only of this submitter; default: the project as a whole");
  set->add_option("--max-jobs", flags->jobs, "Active jobs; later ones wait");
  set->add_option("--max-learners", flags->learners, "Learner ranks");
  set->add_option("--max-rollout-workers", flags->rollout_workers, "Rollout workers");
  set->add_option("--max-score-requests", flags->score_requests, "Requests at reward servers");
  set->add_option("--weight", flags->weight, "Share against others of the same priority")->capture_default_str();
  set->callback([=, &connection] {
    *run = [=, &connection] {
      v1::Quota value;
      value.set_submitter(flags->submitter);
      value.set_max_jobs(flags->jobs);
      value.set_max_learners(flags->learners);
      value.set_max_rollout_workers(flags->rollout_workers);
      value.set_max_score_requests(flags->score_requests);
      value.set_weight(flags->weight);
      return Set(connection, value);
    };
  });
}

}  // namespace rlhf::cli
