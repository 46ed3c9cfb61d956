// rlhfctl: the command line of the service.
#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/command_tree.h"
#include "cli/commands/commands.h"
#include "cli/connection.h"
#include "cli/utf8.h"
#include "common/build_version.h"
#include "common/log.h"
#include "common/process.h"
#include "common/standard_output.h"
#include "common/status_util.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

int Version(const ConnectionFlags& connection, bool client_only) {
  const bool table = connection.output == "table";
  nlohmann::ordered_json json = {{"version", BuildVersion()}, {"protocol", kProtocolVersion}};
  const auto print = [&] {  // JSON is YAML too
    if (!table) std::printf("%s\n", json.dump(1).c_str());
    return static_cast<int>(v1::EXIT_OK);
  };
  if (table) std::printf("%s\n", VersionLine("rlhfctl").c_str());
  if (client_only) return print();
  auto channel = Connect(connection);
  if (!channel.ok()) return print();  // no coordinator is named: the client's version is all there is to say
  v1::ServiceState state;
  const auto context = CallContext(absl::Seconds(5));
  const absl::Status status = FromGrpc(
      v1::OversightService::NewStub(*channel)->GetServiceState(context.get(), v1::GetServiceStateRequest(), &state));
  if (!status.ok()) return Fail(status);
  json["coordinator"] = {{"version", state.build_version()}, {"protocol", state.protocol_version()}};
  if (table) std::printf("coordinator %s, protocol %u\n", state.build_version().c_str(), state.protocol_version());
  return print();
}

// What was printed and did not arrive is a failure, whatever was done.
int Ended(int code) {
  if (code != v1::EXIT_OK) return code;
  const absl::Status printed = FlushStandardOutput();
  return printed.ok() ? code : Fail(Here(printed));
}

// The kernel keeps from a container's process 1 every signal that it has no handler for: the pod of a job would be
// killed after its whole grace period, at each drain.
void EndOnSignals() {
  if (getpid() != 1) return;
  for (const int number : {SIGTERM, SIGINT}) signal(number, [](int which) { _exit(128 + which); });
}

}  // namespace
}  // namespace rlhf::cli

int main(int argc, char** argv) {
  rlhf::cli::EndOnSignals();
  rlhf::InitLogging("rlhfctl", "cli", "warn", /*json=*/false);
  CLI::App app{"Launch, watch and steer RLHF jobs."};
  app.set_version_flag("--version", rlhf::VersionLine("rlhfctl"), "This program's version and protocol, and exit");
  app.require_subcommand(1);
  app.fallthrough();
  rlhf::cli::ConnectionFlags connection;
  app.add_option("--context", connection.context_file, "Context file with address, CA and token")
      ->capture_default_str();
  app.add_option(
      "--address", connection.address,
      "API address of the coordinator, host:port; of several: IP:PORT,IP:PORT or dns:///NAME:PORT; overrides "
      "the context file's");
  app.add_option("--ca", connection.ca_file, "CA certificate, PEM");
  app.add_option("--token-file", connection.token_file, "File with the bearer token");
  app.add_flag("--insecure", connection.insecure, "Plaintext, for trials");
  app.add_option(
      "--project", connection.project,
      "Project; without it the token's (`default` for one of all projects), and listings of all that you may "
      "see");
  app.add_option("--output", connection.output, "table, json or yaml")
      ->check(CLI::IsMember({"table", "json", "yaml"}))
      ->capture_default_str();
  rlhf::cli::Run run;
  bool client_only = false;
  auto* version = app.add_subcommand("version", "Versions of this program and of the coordinator");
  version->add_flag("--client", client_only, "Only of this program");
  version->callback([&] { run = [&] { return rlhf::cli::Version(connection, client_only); }; });
  rlhf::cli::AddJobCommands(app, connection, &run);
  rlhf::cli::AddLedgerCommand(app, connection, &run);
  rlhf::cli::AddSampleCommands(app, connection, &run);
  rlhf::cli::AddReplayCommand(app, connection, &run);
  rlhf::cli::AddReportCommand(app, connection, &run);
  rlhf::cli::AddTraceCommand(app, connection, &run);
  rlhf::cli::AddArtifactCommands(app, connection, &run);
  rlhf::cli::AddFleetCommands(app, connection, &run);
  rlhf::cli::AddFeedbackCommands(app, connection, &run);
  rlhf::cli::AddServiceCommands(app, connection, &run);
  rlhf::cli::AddOversightCommands(app, connection, &run);
  rlhf::cli::AddQuotaCommands(app, connection, &run);
  rlhf::cli::AddUpCommand(app, &run);
  rlhf::cli::AddPkiCommands(app, &run);
  rlhf::cli::AddRanksCommand(app, &run);
  rlhf::cli::AddToolCommands(app, connection, &run);
  rlhf::cli::AddDoctorCommand(app, connection, &run);
  if (const absl::Status status = rlhf::cli::CheckArguments(argc, argv); !status.ok()) return rlhf::cli::Fail(status);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const std::string unknown = error.get_exit_code() == 0 ? "" : rlhf::cli::UnknownCommand(app);
    if (!unknown.empty()) return rlhf::cli::Fail(rlhf::cli::Here(absl::InvalidArgumentError(unknown)));
    const int code = app.exit(error);
    return rlhf::cli::Ended(code == 0 ? 0 : static_cast<int>(rlhf::v1::EXIT_USAGE));
  }
  return rlhf::cli::Ended(run ? run() : static_cast<int>(rlhf::v1::EXIT_USAGE));
}
