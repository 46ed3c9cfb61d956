// workers, token.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/commands/commands.h"
#include "cli/kubernetes.h"
#include "cli/kubernetes_names.h"
#include "cli/output.h"
#include "cli/pages.h"
#include "cli/secret_file.h"
#include "common/standard_output.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct FleetFlags {
  std::string instance, subject, token_id, secret_name, name_space = "rlhf";
  std::vector<std::string> roles;
  bool uncordon = false, bootstrap = false, kubernetes = false;
  int64_t days = 30;
};

int ListWorkers(const ConnectionFlags& connection) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::ListWorkersRequest request;
  request.mutable_page()->set_page_size(1000);
  const auto workers = AllPages<v1::Worker>(
      *v1::AdminService::NewStub(*channel), &v1::AdminService::Stub::ListWorkers, request,
      [](const v1::ListWorkersResponse& page) -> const auto& { return page.workers(); });
  if (!workers.ok()) return Fail(workers.status());
  if (connection.output != "table") {
    PrintMessages(connection.output, *workers);
    return v1::EXIT_OK;
  }
  Table table({"INSTANCE", "ROLE", "STATE", "DEVICE", "LEASED", "POLICY", "JOB", "HEARTBEAT", "BUILD"});
  for (const v1::Worker& worker : *workers) {
    std::string role = v1::Role_Name(worker.role());
    table.Row({worker.instance_id(), role.rfind("ROLE_", 0) == 0 ? role.substr(5) : role,
               v1::WorkerState_Name(worker.state()), worker.device(),
               worker.slots() > 0 ? absl::StrCat(worker.leased(), "/", worker.slots()) : "",
               worker.has_policy() ? absl::StrCat(worker.policy().step()) : "", worker.job_id(),
               worker.seconds_since_heartbeat() < 0 ? "away"
                                                    : absl::StrFormat("%.1f s ago", worker.seconds_since_heartbeat()),
               worker.build_version()});
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

template <typename Request, typename Method>
int ChangeWorker(const ConnectionFlags& connection, Request request, Method method) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::Worker worker;
  const auto context = CallContext();
  const auto stub = v1::AdminService::NewStub(*channel);
  if (const absl::Status status = FromGrpc(method(*stub, context.get(), request, &worker)); !status.ok())
    return Fail(status);
  std::printf("%s %s%s\n", worker.instance_id().c_str(), v1::WorkerState_Name(worker.state()).c_str(),
              worker.seconds_since_heartbeat() < 0 ? " (not registered now; its name is taken as it is)" : "");
  return v1::EXIT_OK;
}

void PrintToken(const FleetFlags& flags, const std::string& token, const char* default_name) {
  if (!flags.kubernetes) {
    std::printf("%s\n", token.c_str());
    return;
  }
  const std::string name = flags.secret_name.empty() ? default_name : flags.secret_name;
  std::fputs(SecretManifest(name, flags.name_space, {{"token", token}}).c_str(), stdout);
}

// Of an installation without an admin: the coordinator takes it up when it starts with --bootstrap-token-file.
int CreateBootstrapToken(const FleetFlags& flags) {
  const auto token = NewToken();
  if (!token.ok()) return Fail(token.status());
  PrintToken(flags, *token, "rlhf-bootstrap-token");
  return v1::EXIT_OK;
}

// Before a token is made that could then not be printed.
absl::Status CheckSecret(const FleetFlags& flags) {
  if (!flags.kubernetes) return absl::OkStatus();
  if (absl::Status status = CheckNamespace(flags.name_space); !status.ok()) return status;
  return flags.secret_name.empty() ? absl::OkStatus() : CheckSecretName(flags.secret_name);
}

int CreateToken(const ConnectionFlags& connection, const FleetFlags& flags) {
  if (const absl::Status status = CheckSecret(flags); !status.ok()) return Fail(status);
  if (flags.bootstrap) return CreateBootstrapToken(flags);
  if (flags.subject.empty() || flags.roles.empty()) {
    return Fail(absl::InvalidArgumentError("expected --subject and --role (or --bootstrap, where nobody is admin)"));
  }
  v1::CreateTokenRequest request;
  request.set_subject(flags.subject);
  request.set_project(connection.project);
  request.set_ttl_seconds(flags.days * 24 * 3600);
  for (std::string role : flags.roles) {
    for (char& c : role) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    v1::TokenRole value = v1::TOKEN_ROLE_UNSPECIFIED;
    if (!v1::TokenRole_Parse(role, &value)) {
      return Fail(absl::InvalidArgumentError(
          absl::StrCat("--role: expected viewer, submitter, rater, overseer or admin, found \"", role, "\"")));
    }
    request.add_roles(value);
  }
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::CreateTokenResponse response;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::AdminService::NewStub(*channel)->CreateToken(context.get(), request, &response));
  if (!status.ok()) return Fail(status);
  if (connection.output != "table") {
    PrintMessage(connection.output, response);
  } else {
    PrintToken(flags, response.secret(), "rlhf-token");
  }
  if (const absl::Status printed = FlushStandardOutput(); !printed.ok()) {
    return Fail(Here(Annotate(printed, absl::StrCat("a token was made and its secret is lost; `rlhfctl token revoke ",
                                                    response.token().id(), "` and make another"))));
  }
  return v1::EXIT_OK;
}

int ListTokens(const ConnectionFlags& connection) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::ListTokensRequest request;
  request.mutable_page()->set_page_size(1000);
  const auto tokens = AllPages<v1::TokenRow>(
      *v1::AdminService::NewStub(*channel), &v1::AdminService::Stub::ListTokens, request,
      [](const v1::ListTokensResponse& page) -> const auto& { return page.tokens(); });
  if (!tokens.ok()) return Fail(tokens.status());
  if (connection.output != "table") {
    PrintMessages(connection.output, *tokens);
    return v1::EXIT_OK;
  }
  Table table({"ID", "SUBJECT", "PROJECT", "ROLES", "EXPIRES", "REVOKED"});
  for (const v1::TokenRow& token : *tokens) {
    std::string roles;
    for (const int role : token.roles())
      absl::StrAppend(&roles, roles.empty() ? "" : ",", v1::TokenRole_Name(static_cast<v1::TokenRole>(role)));
    table.Row({token.id(), token.subject(), token.project(), roles,
               Expiry(absl::FromUnixSeconds(token.expires_at().seconds()), absl::Now()), token.revoked() ? "yes" : ""});
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

int RevokeToken(const ConnectionFlags& connection, const std::string& id) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::RevokeTokenRequest request;
  request.set_id(id);
  v1::RevokeTokenResponse response;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::AdminService::NewStub(*channel)->RevokeToken(context.get(), request, &response));
  if (!status.ok()) return Fail(status);
  std::printf("token %s revoked\n", id.c_str());
  return v1::EXIT_OK;
}

}  // namespace

void AddFleetCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<FleetFlags>();
  auto* workers = app.add_subcommand("workers", "Rollout workers, reward servers and learners");
  workers->require_subcommand(1);
  workers->add_subcommand("list", "List them")->callback([=, &connection] {
    *run = [&connection] { return ListWorkers(connection); };
  });
  auto* drain = workers->add_subcommand(
      "drain", "Let one finish what it has, then exit; what supervises it starts it again: cordon it first");
  drain->add_option("instance", flags->instance, "Instance id")->required();
  drain->callback([=, &connection] {
    *run = [=, &connection] {
      v1::DrainWorkerRequest request;
      request.set_instance_id(flags->instance);
      return ChangeWorker(connection, request, [](auto& stub, auto* context, const auto& r, auto* worker) {
        return stub.DrainWorker(context, r, worker);
      });
    };
  });
  auto* cordon = workers->add_subcommand(
      "cordon", "Give one nothing new, until --undo: also while it is away, and after restarts");
  cordon->add_option("instance", flags->instance, "Instance id")->required();
  cordon->add_flag("--undo", flags->uncordon, "Give it work again");
  cordon->callback([=, &connection] {
    *run = [=, &connection] {
      v1::CordonWorkerRequest request;
      request.set_instance_id(flags->instance);
      request.set_uncordon(flags->uncordon);
      return ChangeWorker(connection, request, [](auto& stub, auto* context, const auto& r, auto* worker) {
        return stub.CordonWorker(context, r, worker);
      });
    };
  });

  auto* token = app.add_subcommand("token", "Bearer tokens of the API");
  token->require_subcommand(1);
  auto* create = token->add_subcommand("create", "Mint one; prints the secret, once");
  create->add_option("--subject", flags->subject, "The person or service");
  create->add_option("--role", flags->roles, "viewer, submitter, rater, overseer, admin; may be repeated");
  create->add_flag("--bootstrap", flags->bootstrap,
                   "An admin token for a coordinator that has none, and is started with it (--bootstrap-token-file)");
  create->add_flag("--kubernetes", flags->kubernetes, "Print a Secret for kubectl apply -f - instead");
  create->add_option("--secret-name", flags->secret_name, "Its name; default rlhf-token, or rlhf-bootstrap-token");
  create->add_option("--namespace", flags->name_space, "Its namespace")->capture_default_str();
  create->add_option("--days", flags->days, "Valid for")->check(CLI::Range(1, 3650))->capture_default_str();
  create->callback([=, &connection] { *run = [=, &connection] { return CreateToken(connection, *flags); }; });
  token->add_subcommand("list", "List them")->callback([=, &connection] {
    *run = [&connection] { return ListTokens(connection); };
  });
  auto* revoke = token->add_subcommand("revoke", "Revoke one at once");
  revoke->add_option("id", flags->token_id, "Token id")->required();
  revoke->callback([=, &connection] { *run = [=, &connection] { return RevokeToken(connection, flags->token_id); }; });
}

}  // namespace rlhf::cli
