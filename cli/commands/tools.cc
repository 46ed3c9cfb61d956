// completion, man, plan, logs.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "artifact/model_config.h"
#include "cli/command_tree.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "cli/memory_plan.h"
#include "cli/output.h"
#include "common/printable.h"
#include "common/process.h"
#include "common/spec_loader.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct ToolFlags {
  std::string shell, model, job, level = "info";
  bool no_critic = false, bfloat16 = false, follow = false;
  PlanInput plan;
};

int Plan(const ConnectionFlags& connection, ToolFlags flags) {
  auto config = artifact::LoadModelConfig(flags.model);
  if (!config.ok()) return Fail(Here(config.status()));
  flags.plan.policy = *config;
  flags.plan.critic = !flags.no_critic;
  flags.plan.bfloat16 = flags.bfloat16;
  const std::vector<PlanLine> plan = MemoryPlan(flags.plan);
  if (connection.output != "table") {
    std::string json = absl::StrCat("{\"parameters\": ", artifact::NumParameters(*config));
    for (const char* role : {"learner", "rollout worker", "reward server"})
      absl::StrAppend(&json, ", \"", role, "\": ", TotalOf(plan, role));
    absl::StrAppend(&json, ", \"learner on a GPU\": ", LearnerOnGpu(plan));
    std::printf("%s}\n", json.c_str());
    return v1::EXIT_OK;
  }
  Table table({"ROLE", "WHAT", "MEMORY"});
  for (const PlanLine& line : plan) table.Row({line.role, line.what, Bytes(line.bytes)});
  for (const char* role : {"learner", "rollout worker", "reward server"})
    table.Row({role, "together, a process", Bytes(TotalOf(plan, role))});
  table.Row({"learner", "of it on a GPU, the rest on its host", Bytes(LearnerOnGpu(plan))});
  std::printf("%.3g million parameters\n%s", static_cast<double>(artifact::NumParameters(*config)) / 1e6,
              table.Text().c_str());
  return v1::EXIT_OK;
}

void PrintLine(const ConnectionFlags& connection, const v1::LogLine& line) {
  if (connection.output != "table") {
    std::printf("%s\n", ToJson(line, /*pretty=*/false).c_str());
  } else {
    const absl::Time at = absl::FromUnixSeconds(line.at().seconds()) + absl::Nanoseconds(line.at().nanos());
    std::printf("%s %-5s %s %s\n", absl::FormatTime("%H:%M:%E3S", at, absl::LocalTimeZone()).c_str(),
                Printable(line.level()).c_str(), Printable(line.instance_id()).c_str(),
                Printable(line.message()).c_str());
  }
  std::fflush(stdout);
}

absl::StatusOr<std::string> JobId(const ConnectionFlags& connection, const std::shared_ptr<grpc::Channel>& channel,
                                  const std::string& name) {
  if (name.empty()) return name;
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, FindJob(*v1::JobService::NewStub(channel), connection.project, name));
  return job.id();
}

int Logs(const ConnectionFlags& connection, const ToolFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto id = JobId(connection, *channel, flags.job);
  if (!id.ok()) return Fail(id.status());
  v1::FollowLogsRequest request;
  request.set_job_id(*id);
  request.set_follow(flags.follow);
  request.set_min_level(flags.level);
  const auto context = CallContext(flags.follow ? absl::InfiniteDuration() : absl::Seconds(60));
  const auto reader = v1::LogService::NewStub(*channel)->FollowLogs(context.get(), request);
  v1::LogLine line;
  while (reader->Read(&line)) PrintLine(connection, line);
  const absl::Status status = FromGrpc(reader->Finish());
  return status.ok() ? static_cast<int>(v1::EXIT_OK) : Fail(status);
}

int Print(const absl::StatusOr<std::string>& text) {
  if (!text.ok()) return Fail(text.status());
  std::fputs(text->c_str(), stdout);
  return v1::EXIT_OK;
}

}  // namespace

void AddToolCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<ToolFlags>();
  auto* completion = app.add_subcommand("completion", "A completion script for a shell");
  completion->add_option("shell", flags->shell, "bash, zsh or fish")->required();
  completion->callback([=, &app] { *run = [=, &app] { return Print(CompletionScript(app, flags->shell)); }; });
  auto* man = app.add_subcommand("man", "The manual page, as troff: rlhfctl man | man -l -");
  man->callback([=, &app] { *run = [&app] { return Print(ManPage(app, kBuildVersion)); }; });

  auto* plan = app.add_subcommand("plan", "How much memory a model takes in each role");
  plan->add_option("model", flags->model, "Folder with the model's config.json")->required();
  plan->add_flag("--bfloat16", flags->bfloat16, "Compute in bfloat16");
  plan->add_flag("--gradient-checkpointing", flags->plan.gradient_checkpointing, "As in the job");
  plan->add_flag("--no-critic", flags->no_critic, "A job without a critic (SFT, RLOO, GRPO)");
  plan->add_option("--ranks", flags->plan.ranks, "Learners that train together, as in the job")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  plan->add_flag("--shard-optimizer-state", flags->plan.shard_optimizer_state,
                 "As in the job: each rank holds its share of gradients and the optimizer's state");
  plan->add_flag("--shard-parameters", flags->plan.shard_parameters,
                 "As in the job: each rank holds its share of the layers' weights; with --shard-optimizer-state");
  plan->add_option("--micro-batch-tokens", flags->plan.micro_batch_tokens, "As in the job")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  plan->add_option("--slots", flags->plan.slots, "Sequences a rollout worker generates at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  plan->add_option("--tokens-a-slot", flags->plan.tokens_a_slot, "Prompt and response; 0: the model's context")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  plan->callback([=, &connection] { *run = [=, &connection] { return Plan(connection, *flags); }; });

  auto* logs = app.add_subcommand("logs", "Log lines of a job across all roles, or of the whole service");
  logs->add_option("job", flags->job, "Job id or name; default: everything");
  logs->add_flag("--follow", flags->follow, "Go on until the job ends, or Ctrl-C");
  logs->add_option("--level", flags->level, "debug, info, warn or error, and above")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  logs->callback([=, &connection] { *run = [=, &connection] { return Logs(connection, *flags); }; });
}

}  // namespace rlhf::cli
