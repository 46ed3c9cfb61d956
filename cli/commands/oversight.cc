// gate, service, audit: what people decide, and how it can be checked.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/artifact_root.h"
#include "cli/artifact_queries.h"
#include "cli/check/audit_log.h"
#include "cli/commands/commands.h"
#include "cli/metric_order.h"
#include "cli/output.h"
#include "cli/pages.h"
#include "common/durable_file.h"
#include "common/printable.h"
#include "common/status_util.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct OversightFlags {
  std::string gate, comment, report, reason, model, file, kept_heads;
  std::vector<std::string> public_keys;
  bool all = false, yes = false;
};

using Stub = v1::OversightService::Stub;

// Connects and calls; the answer, or the exit code after the error was printed.
template <typename Request, typename Response>
absl::StatusOr<Response> Ask(const ConnectionFlags& connection, const Request& request,
                             grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  RLHF_ASSIGN_OR_RETURN(const auto channel, Connect(connection));
  const auto stub = v1::OversightService::NewStub(channel);
  const auto context = CallContext(absl::Minutes(5));
  Response response;
  RLHF_RETURN_IF_ERROR(FromGrpc((stub.get()->*method)(context.get(), request, &response)));
  return response;
}

absl::StatusOr<std::vector<v1::GateRow>> AllGates(const ConnectionFlags& connection) {
  RLHF_ASSIGN_OR_RETURN(const auto channel, Connect(connection));
  v1::ListGatesRequest request;
  request.mutable_page()->set_page_size(1000);
  return AllPages<v1::GateRow>(
      *v1::OversightService::NewStub(channel), &Stub::ListGates, request,
      [](const v1::ListGatesResponse& page) -> const auto& { return page.gates(); }, absl::Minutes(5));
}

std::string StateName(const v1::GateRow& gate) {
  return absl::AsciiStrToLower(v1::GateState_Name(gate.state()).substr(5));
}

int ListGates(const ConnectionFlags& connection, const OversightFlags& flags) {
  const auto gates = AllGates(connection);
  if (!gates.ok()) return Fail(gates.status());
  std::vector<v1::GateRow> shown;
  for (const v1::GateRow& gate : *gates) {
    if (flags.all || gate.state() == v1::GATE_WAITING) shown.push_back(gate);
  }
  if (connection.output == "json") {
    PrintJsonArray(shown);
    return v1::EXIT_OK;
  }
  Table table({"GATE", "STATE", "APPROVALS", "CONDITIONS", "POLICY", "OPENED"});
  for (const v1::GateRow& gate : shown) {
    int approvals = 0, holds = 0;
    for (const v1::Approval& approval : gate.approvals()) approvals += approval.approved() ? 1 : 0;
    for (const v1::ConditionResult& result : gate.results()) holds += result.holds() ? 1 : 0;
    table.Row({gate.id(), StateName(gate), absl::StrCat(approvals, "/", gate.spec().required_approvals()),
               absl::StrCat(holds, "/", gate.results_size()), Short(gate.policy()),
               google::protobuf::util::TimeUtil::ToString(gate.opened_at())});
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

absl::StatusOr<v1::GateRow> FindGate(const ConnectionFlags& connection, const std::string& id) {
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::GateRow> gates, AllGates(connection));
  for (const v1::GateRow& gate : gates) {
    if (gate.id() == id) return gate;
  }
  return absl::NotFoundError(absl::StrCat("no gate \"", id, "\"; `rlhfctl gate list --all` names them"));
}

void PrintReport(const v1::GateRow& gate) {
  std::printf("gate %s: %s\nreport %s\n", gate.id().c_str(), StateName(gate).c_str(), gate.report_sha256().c_str());
  if (!gate.policy().empty()) std::printf("policy %s\n", gate.policy().c_str());
  Table conditions({"CONDITION", "MIN", "MAX", "FOUND", "HOLDS"});
  for (const v1::ConditionResult& result : gate.results()) {
    const v1::GateCondition& c = result.condition();
    conditions.Row({c.stage().empty() ? c.metric() : absl::StrCat(c.stage(), ".", c.metric()),
                    c.has_min() ? Number(c.min()) : "", c.has_max() ? Number(c.max()) : "",
                    result.problem().empty() ? Number(result.found().value()) : result.problem(),
                    result.holds() ? "yes" : "NO"});
  }
  if (!gate.results().empty()) std::fputs(conditions.Text().c_str(), stdout);
  Table metrics({"METRIC", "VALUE", "95 % INTERVAL", "N"});
  for (const auto& [name, metric] : MetricsInOrder({gate.metrics().begin(), gate.metrics().end()})) {
    metrics.Row({name, Number(metric.value()),
                 metric.has_low() ? absl::StrFormat("[%s, %s]", Number(metric.low()), Number(metric.high())) : "",
                 metric.n() > 0 ? absl::StrCat(metric.n()) : ""});
  }
  std::fputs(metrics.Text().c_str(), stdout);
  Table artifacts({"ARTIFACT", "DIGEST"});
  for (const auto& [name, digest] :
       std::map<std::string, std::string>(gate.artifacts().begin(), gate.artifacts().end()))
    artifacts.Row({name, digest});
  std::fputs(artifacts.Text().c_str(), stdout);
  for (const v1::Approval& approval : gate.approvals()) {
    std::printf("%s by %s%s%s\n", approval.approved() ? "approved" : "rejected", approval.subject().c_str(),
                approval.comment().empty() ? "" : ": ", Printable(approval.comment(), /*keep_lines=*/true).c_str());
  }
}

int ShowGate(const ConnectionFlags& connection, const OversightFlags& flags) {
  const auto gate = FindGate(connection, flags.gate);
  if (!gate.ok()) return Fail(gate.status());
  if (connection.output == "json")
    PrintJson(*gate);
  else
    PrintReport(*gate);
  return v1::EXIT_OK;
}

int Decide(const ConnectionFlags& connection, const OversightFlags& flags, bool approve) {
  v1::DecideGateRequest request;
  request.set_gate_id(flags.gate);
  request.set_approve(approve);
  request.set_comment(flags.comment);
  request.set_report_sha256(flags.report);
  if (approve && flags.report.empty()) {
    // The report is shown before it is approved; --report says that it was read elsewhere.
    const auto gate = FindGate(connection, flags.gate);
    if (!gate.ok()) return Fail(gate.status());
    PrintReport(*gate);
    std::printf("\ntype the first 8 characters of the report's digest to approve it: ");
    std::fflush(stdout);
    std::string typed;
    std::getline(std::cin, typed);
    if (typed.size() < 8 || !absl::StartsWith(gate->report_sha256(), typed))
      return Fail(absl::CancelledError("not approved: that is not the digest of the report above"));
    request.set_report_sha256(gate->report_sha256());
  }
  const auto gate = Ask(connection, request, &Stub::DecideGate);
  if (!gate.ok()) return Fail(gate.status());
  if (connection.output == "json")
    PrintJson(*gate);
  else
    std::printf("gate %s is %s\n", gate->id().c_str(), StateName(*gate).c_str());
  return v1::EXIT_OK;
}

int ShowState(const ConnectionFlags& connection, const absl::StatusOr<v1::ServiceState>& state) {
  if (!state.ok()) return Fail(state.status());
  if (connection.output == "json")
    PrintJson(*state);
  else if (state->halted())
    std::printf("halted by %s%s%s\n", state->by().c_str(), state->reason().empty() ? "" : ": ",
                Printable(state->reason()).c_str());
  else
    std::printf("running\n");
  return v1::EXIT_OK;
}

int Halt(const ConnectionFlags& connection, const OversightFlags& flags) {
  v1::HaltServiceRequest request;
  request.set_reason(flags.reason);
  return ShowState(connection, Ask(connection, request, &Stub::HaltService));
}

int Resume(const ConnectionFlags& connection, const OversightFlags& flags) {
  v1::ResumeServiceRequest request;
  request.set_reason(flags.reason);
  return ShowState(connection, Ask(connection, request, &Stub::ResumeService));
}

int State(const ConnectionFlags& connection, const OversightFlags&) {
  return ShowState(connection, Ask(connection, v1::GetServiceStateRequest(), &Stub::GetServiceState));
}

int ShowLineage(const ConnectionFlags& connection, const OversightFlags& flags) {
  v1::GetLineageRequest request;
  request.set_project(connection.project);
  request.set_model(flags.model);
  if (std::ifstream(flags.model + "/config.json").good()) {
    const auto manifest = artifact::ComputeManifest(flags.model, artifact::Origin::kUser);
    if (!manifest.ok()) return Fail(Here(manifest.status()));
    request.set_model(manifest->digest);
  } else {
    const auto channel = Connect(connection);
    if (!channel.ok()) return Fail(channel.status());
    const auto reference = WholeReference(*channel, flags.model);
    if (!reference.ok()) return Fail(reference.status());
    request.set_model(*reference);
  }
  const auto lineage = Ask(connection, request, &Stub::GetLineage);
  if (!lineage.ok()) return Fail(lineage.status());
  if (connection.output == "json") {
    PrintJson(*lineage);
    return v1::EXIT_OK;
  }
  std::printf("model %s\n", lineage->model().c_str());
  for (const v1::LineageStep& step : lineage->steps()) {
    std::printf("\n%s %s%s%s%s%s\n", step.kind().c_str(), step.id().c_str(), step.name().empty() ? "" : "  ",
                step.name().c_str(), step.by().empty() ? "" : "  by ", step.by().c_str());
    for (const auto& [key, value] : std::map<std::string, std::string>(step.details().begin(), step.details().end()))
      std::printf("  %s: %s\n", key.c_str(), value.c_str());
    for (const std::string& from : step.made_from()) std::printf("  from %s\n", from.c_str());
  }
  std::printf("\n");
  Table records({"RECORD", "AT", "WHO", "WHAT", "ON", "DECISION"});
  for (const v1::AuditRecord& record : lineage->records()) {
    records.Row({absl::StrCat(record.sequence()), google::protobuf::util::TimeUtil::ToString(record.at()),
                 record.subject(), record.action(), record.object(), record.decision()});
  }
  std::fputs(records.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

absl::StatusOr<std::vector<v1::AuditRecord>> ReadRecords(const ConnectionFlags& connection,
                                                         const OversightFlags& flags) {
  std::vector<v1::AuditRecord> records;
  if (!flags.file.empty()) {
    std::ifstream in(flags.file);
    if (!in) return Here(absl::NotFoundError(absl::StrCat("cannot read ", flags.file)));
    std::string line;
    while (std::getline(in, line)) {
      const auto parsed = google::protobuf::util::JsonStringToMessage(line, &records.emplace_back());
      if (!parsed.ok())
        return absl::InvalidArgumentError(absl::StrCat(flags.file, ":", records.size(), ": expected an audit record"));
    }
    if (records.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          flags.file, ": expected audit records, one a line as `rlhfctl audit export` writes them, found none"));
    }
    return records;
  }
  RLHF_ASSIGN_OR_RETURN(const auto channel, Connect(connection));
  return ReadAuditRecords(*v1::OversightService::NewStub(channel));
}

template <typename Message>
void PrintJsonLines(const std::vector<Message>& messages) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  for (const Message& message : messages) {
    std::string line;
    (void)google::protobuf::util::MessageToJsonString(message, &line, options);
    std::printf("%s\n", line.c_str());
  }
}

int ExportAudit(const ConnectionFlags& connection, const OversightFlags& flags) {
  const auto records = ReadRecords(connection, flags);
  if (!records.ok()) return Fail(records.status());
  PrintJsonLines(*records);
  return v1::EXIT_OK;
}

int PrintHeads(const ConnectionFlags& connection, const OversightFlags&) {
  const auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto heads = ReadAuditHeads(*v1::OversightService::NewStub(*channel));
  if (!heads.ok()) return Fail(heads.status());
  PrintJsonLines(*heads);
  return v1::EXIT_OK;
}

// Everything is recomputed here; the coordinator is only asked for the records and the signed heads.
int VerifyAudit(const ConnectionFlags& connection, const OversightFlags& flags) {
  std::vector<std::string> keys;
  std::vector<v1::AuditHead> heads, kept;
  std::vector<std::string> key_files = flags.public_keys;
  if (const std::string known = AuditPublicKeyFile(connection);
      key_files.empty() && flags.file.empty() && !known.empty())
    key_files.push_back(known);
  if (key_files.empty() && !flags.kept_heads.empty())
    return Fail(absl::InvalidArgumentError("--heads: expected --public-key too, which says whose they are"));
  for (const std::string& file : key_files) {
    auto key = ReadFile(file);
    if (!key.ok()) return Fail(Here(key.status()));
    keys.push_back(*std::move(key));
  }
  if (!flags.kept_heads.empty()) {
    auto read = ReadKeptHeads(flags.kept_heads);
    if (!read.ok()) return Fail(Here(read.status()));
    kept = *std::move(read);
  }
  if (!keys.empty()) {
    const auto channel = Connect(connection);
    if (!channel.ok()) return Fail(channel.status());
    auto signed_heads = ReadAuditHeads(*v1::OversightService::NewStub(*channel));
    if (!signed_heads.ok()) return Fail(signed_heads.status());
    heads = *std::move(signed_heads);
  }
  const auto records = ReadRecords(connection, flags);
  if (!records.ok()) return Fail(records.status());
  // A file ends where it was exported: newer heads are of records that it cannot have.
  if (!flags.file.empty())
    std::erase_if(heads, [&](const v1::AuditHead& head) { return head.sequence() > records->size(); });
  const AuditVerdict verdict = VerifyAuditLog(*records, heads, keys, kept);
  if (connection.output != "table") {  // JSON is YAML too
    const nlohmann::ordered_json json = {{"records", verdict.records},      {"signed_heads", verdict.heads},
                                         {"kept_heads", verdict.kept},      {"heads_by_other_keys", verdict.others},
                                         {"problem", verdict.problem},      {"first_bad_record", verdict.first_bad},
                                         {"what_to_do", verdict.what_to_do}};
    std::printf("%s\n", json.dump(1).c_str());
    return verdict.problem.empty() ? v1::EXIT_OK : v1::EXIT_ERROR;
  }
  if (!verdict.problem.empty()) {
    std::fprintf(stderr, "rlhfctl: %s\nwhat to do: %s\n", verdict.problem.c_str(), verdict.what_to_do.c_str());
    return v1::EXIT_ERROR;
  }
  std::printf("%s%s\n", verdict.Text().c_str(), keys.empty() ? " (give --public-key to check signatures)" : "");
  return v1::EXIT_OK;
}

}  // namespace

void AddOversightCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<OversightFlags>();
  const auto add = [&](CLI::App* group, const char* name, const char* help,
                       const std::function<int(const ConnectionFlags&, const OversightFlags&)>& fn) {
    auto* command = group->add_subcommand(name, help);
    command->callback([=, &connection] { *run = [=, &connection] { return fn(connection, *flags); }; });
    return command;
  };
  auto* gate = app.add_subcommand("gate", "Gates: where people decide whether a pipeline goes on");
  gate->require_subcommand(1);
  add(gate, "list", "Those that wait", ListGates)->add_flag("--all", flags->all, "Decided ones too");
  add(gate, "show", "A gate's report: what its decision rests on", ShowGate)
      ->add_option("gate", flags->gate, "Gate id")
      ->required();
  auto* approve = add(gate, "approve", "Approve it, after its report was shown",
                      [](const auto& c, const auto& f) { return Decide(c, f, true); });
  approve->add_option("gate", flags->gate, "Gate id")->required();
  approve->add_option("--report", flags->report, "Digest of the report that was read");
  approve->add_option("--comment", flags->comment, "Why");
  auto* reject = add(gate, "reject", "Reject it: ends the pipeline, or repeats the round if the gate says so",
                     [](const auto& c, const auto& f) { return Decide(c, f, false); });
  reject->add_option("gate", flags->gate, "Gate id")->required();
  reject->add_option("--comment", flags->comment, "Why");

  auto* service = Subcommand(app, "service", "The service as a whole");
  add(service, "halt", "Stop all training: once acknowledged, no step commits anywhere", Halt)
      ->add_option("--reason", flags->reason, "Why")
      ->required();
  add(service, "resume", "Let training go on; only an overseer can", Resume)
      ->add_option("--reason", flags->reason, "Why");
  add(service, "state", "Whether it is halted", State);

  auto* audit = app.add_subcommand("audit", "The audit log and what models rest on");
  audit->require_subcommand(1);
  add(audit, "show", "A model's lineage: data, comparisons, jobs, configurations, gates, people", ShowLineage)
      ->add_option("--model", flags->model, "A model's folder, digest, the beginning of one, or alias")
      ->required();
  add(audit, "export", "All records as JSON lines", ExportAudit);
  add(audit, "heads", "The signed heads as JSON lines: kept elsewhere, they tell a log that was cut back", PrintHeads);
  auto* verify = add(audit, "verify", "Recompute the chain; names the first record that was changed", VerifyAudit);
  verify
      ->add_option("--public-key", flags->public_keys,
                   "PEM file of the key that signs the heads; again for each key before it; default: the context's "
                   "audit_public_key, unless with --file")
      ->allow_extra_args(false);
  verify->add_option(
      "--heads", flags->kept_heads,
      "Heads that were kept elsewhere (`audit heads`, or a coordinator's log): the log has to hold them");
  verify->add_option("--file", flags->file, "Records that were exported before, instead of the coordinator's");
}

}  // namespace rlhf::cli
