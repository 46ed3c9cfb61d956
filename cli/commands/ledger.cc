// ledger: where a job's samples are; with --check, whether its whole history adds up.
#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/check/audit_log.h"
#include "cli/check/evidence.h"
#include "cli/check/ledger_check.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "cli/output.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct LedgerFlags {
  std::string job, evidence, public_key;
  bool check = false;
};

absl::StatusOr<v1::GetLedgerResponse> GetLedger(v1::JobService::Stub& stub, const std::string& id, bool check) {
  v1::GetLedgerRequest request;
  request.set_job_id(id);
  request.set_check(check);
  v1::GetLedgerResponse response;
  const auto context = CallContext(absl::Minutes(5));
  RLHF_RETURN_IF_ERROR(FromGrpc(stub.GetLedger(context.get(), request, &response)));
  return response;
}

absl::StatusOr<std::vector<CheckedSample>> GetSamples(v1::JobService::Stub& stub, const std::string& id) {
  std::vector<CheckedSample> samples;
  std::set<std::tuple<int64_t, int, int>> seen;
  RLHF_RETURN_IF_ERROR(EachSample(stub, id, [&](const v1::SampleView& view) {
    const v1::SampleId& sample = view.row().id();
    const bool first = seen.emplace(sample.step(), sample.ordinal(), sample.index()).second;
    samples.push_back(CheckedSampleOf(view, !first));
    return true;
  }));
  return samples;
}

constexpr int kTries = 3;

// What the rows, and the evidence where there is some, say against a job without stages. `ledger` is the coordinator's
// check of it, read after `job`. A job that went back to a checkpoint while it was read is read again; one that does so
// every time is noted.
absl::Status CheckOne(const ConnectionFlags& connection, v1::JobService::Stub& stub, v1::Job job,
                      v1::GetLedgerResponse ledger, const Evidence* evidence, Compared* compared,
                      v1::GetLedgerResponse* report) {
  for (int tries = 1;; ++tries) {
    LedgerFacts facts;
    facts.job = job;
    facts.steps.assign(ledger.steps().begin(), ledger.steps().end());
    RLHF_ASSIGN_OR_RETURN(facts.samples, GetSamples(stub, facts.job.id()));
    RLHF_ASSIGN_OR_RETURN(const v1::Job after, FindJob(stub, connection.project, facts.job.id()));
    if (after.step() < facts.job.step() || after.group_epoch() != facts.job.group_epoch()) {
      if (tries < kTries) {
        RLHF_ASSIGN_OR_RETURN(job, FindJob(stub, connection.project, facts.job.id()));
        RLHF_ASSIGN_OR_RETURN(ledger, GetLedger(stub, facts.job.id(), true));
        continue;
      }
      report->add_notes(absl::StrCat("job ", facts.job.id(), ": its steps were not compared with its samples: its ",
                                     "learner group formed anew in each of ", kTries, " readings"));
      return absl::OkStatus();
    }
    facts.step_after = after.step();
    facts.lineage_after = after.version().lineage();
    for (const std::string& violation : CheckLedger(facts)) report->add_violations(violation);
    if (evidence != nullptr) {
      for (const std::string& violation : CheckEvidence(facts, *evidence, compared)) report->add_violations(violation);
    }
    return absl::OkStatus();
  }
}

// A job or its stages. `report` is the coordinator's check of all of it, read after `job`; what is found is added.
absl::Status Check(const ConnectionFlags& connection, v1::JobService::Stub& stub, const v1::Job& job,
                   const Evidence* evidence, Compared* compared, v1::GetLedgerResponse* report) {
  if (job.children().empty()) return CheckOne(connection, stub, job, *report, evidence, compared, report);
  for (const std::string& child : job.children()) {
    RLHF_ASSIGN_OR_RETURN(const v1::Job stage, FindJob(stub, connection.project, child));
    RLHF_ASSIGN_OR_RETURN(v1::GetLedgerResponse ledger, GetLedger(stub, child, true));
    RLHF_RETURN_IF_ERROR(CheckOne(connection, stub, stage, std::move(ledger), evidence, compared, report));
  }
  return absl::OkStatus();
}

// The audit log, not as the coordinator judges its own but recomputed here, where a public key says whose it is. What
// was verified, for people.
absl::StatusOr<std::string> CheckAudit(const std::string& public_key_file,
                                       const std::shared_ptr<grpc::Channel>& channel,
                                       std::vector<std::string>* violations) {
  if (public_key_file.empty()) return "the audit log by the coordinator's own word (--public-key verifies it here)";
  const absl::StatusOr<std::string> pem = ReadFile(public_key_file);
  if (!pem.ok()) return Here(pem.status());
  const auto stub = v1::OversightService::NewStub(channel);
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::AuditHead> heads, ReadAuditHeads(*stub));
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::AuditRecord> records, ReadAuditRecords(*stub));
  const AuditVerdict verdict = VerifyAuditLog(records, heads, {*pem});
  if (!verdict.problem.empty()) violations->push_back(absl::StrCat("audit log: ", verdict.problem));
  return absl::StrCat("the audit log's ", verdict.Text());
}

nlohmann::ordered_json ToJson(const Compared& compared) {
  return {{"steps", compared.steps},
          {"rank_lines", compared.rank_lines},
          {"samples", compared.samples},
          {"samples_seen", compared.samples_seen}};
}

// The coordinator's answer with what was found here, and how much there was to compare.
void PrintChecked(const std::string& output, const v1::GetLedgerResponse& response, const Compared* compared) {
  if (compared == nullptr) return PrintMessage(output, response);
  if (output == "yaml") {
    std::printf("%scompared: %s\n", MessageToYaml(response).c_str(), ToJson(*compared).dump().c_str());
    return;
  }
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(MessageToJson(response));
  json["compared"] = ToJson(*compared);
  std::printf("%s\n", json.dump(1).c_str());
}

void Print(const v1::GetLedgerResponse& response) {
  const v1::LedgerCounts& counts = response.counts();
  Table table({"ISSUED", "QUEUED", "LEASED", "GENERATED", "SCORED", "ASSIGNED", "TRAINED", "DELIVERED", "STALE",
               "FAILED", "CANCELLED"});
  table.Row({absl::StrCat(counts.issued()), absl::StrCat(counts.queued()), absl::StrCat(counts.leased()),
             absl::StrCat(counts.generated()), absl::StrCat(counts.scored()), absl::StrCat(counts.assigned()),
             absl::StrCat(counts.trained()), absl::StrCat(counts.delivered()), absl::StrCat(counts.stale()),
             absl::StrCat(counts.failed()), absl::StrCat(counts.cancelled())});
  std::fputs(table.Text().c_str(), stdout);
}

int Ledger(const ConnectionFlags& connection, const LedgerFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto stub = v1::JobService::NewStub(*channel);
  const auto job = FindJob(*stub, connection.project, flags.job);
  if (!job.ok()) return Fail(job.status());
  const bool check = flags.check || !flags.evidence.empty();
  auto response = GetLedger(*stub, job->id(), check);
  if (!response.ok()) return Fail(response.status());
  std::optional<Evidence> evidence;
  Compared compared;
  std::string audit;
  if (check) {
    if (!flags.evidence.empty()) {
      auto read = ReadEvidence(flags.evidence);
      if (!read.ok()) return Fail(Here(read.status()));
      evidence = *std::move(read);
    }
    const Evidence* seen = evidence ? &*evidence : nullptr;
    if (const absl::Status status = Check(connection, *stub, *job, seen, &compared, &*response); !status.ok())
      return Fail(status);
    std::vector<std::string> violations;
    const std::string key = flags.public_key.empty() ? AuditPublicKeyFile(connection) : flags.public_key;
    auto verified = CheckAudit(key, *channel, &violations);
    if (!verified.ok()) return Fail(verified.status());
    audit = *std::move(verified);
    for (std::string& violation : violations) response->add_violations(std::move(violation));
  }
  const v1::LedgerCounts& counts = response->counts();
  const int64_t sum = counts.queued() + counts.leased() + counts.generated() + counts.scored() + counts.assigned() +
                      counts.trained() + counts.delivered() + counts.stale() + counts.failed() + counts.cancelled();
  if (sum != counts.issued()) {
    response->add_violations(absl::StrCat("the states add up to ", sum, ", not to issued, ", counts.issued()));
  }
  if (connection.output != "table") {
    PrintChecked(connection.output, *response, evidence ? &compared : nullptr);
  } else {
    Print(*response);
    for (const std::string& violation : response->violations()) std::printf("violation: %s\n", violation.c_str());
    for (const std::string& note : response->notes()) std::printf("note: %s\n", note.c_str());
    if (check && response->violations().empty()) {
      std::printf("checked: every sample is accounted for%s; %s\n",
                  response->notes().empty() ? "" : ", but for what the notes name", audit.c_str());
      if (evidence) {
        std::printf("compared: %lld steps with %lld lines of ranks, %lld of %lld samples with rollout workers' notes\n",
                    static_cast<long long>(compared.steps), static_cast<long long>(compared.rank_lines),
                    static_cast<long long>(compared.samples_seen), static_cast<long long>(compared.samples));
      }
    }
  }
  return response->violations().empty() ? v1::EXIT_OK : v1::EXIT_ERROR;
}

}  // namespace

void AddLedgerCommand(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<LedgerFlags>();
  auto* ledger = app.add_subcommand("ledger", "Where every sample of a job is; exits 1 when something does not add up");
  ledger->add_option("job", flags->job, "Job id or name")->required();
  ledger->add_flag("--check", flags->check,
                   "Recount the rows, read every payload, verify the audit log, and check each step's batch and lag");
  ledger->add_option("--evidence", flags->evidence,
                     "Check against what learners and rollout workers noted in this folder (their --evidence-dir) too");
  ledger->add_option(
      "--public-key", flags->public_key,
      "Verify the audit log here, with this PEM file of the key that signs its heads (an overseer's or an "
      "admin's token); default: the context's audit_public_key");
  ledger->callback([=, &connection] { *run = [=, &connection] { return Ledger(connection, *flags); }; });
}

}  // namespace rlhf::cli
