// replay: trains a PPO job's recorded batches once more, undisturbed, and compares digests step by step.
//
// Folder layout (read by rlhf-replay): job.pb (rlhf.v1.Job), committed.pb (rlhf.v1.GetLedgerResponse, its steps),
// batches/STEP.pb (rlhf.v1.BatchChunk), artifacts/ (an artifact root with what learners read).
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "client/cpp/artifact_cache.h"
#include "common/durable_file.h"
#include "common/learner_inputs.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::cli {
namespace {

struct ReplayFlags {
  std::string job, out, bin_dir;
  int threads = 1;
};

absl::Status ExportBatch(v1::JobService::Stub& stub, const std::string& job_id, int64_t step, const std::string& file) {
  v1::BatchChunk batch;
  std::string problem;
  const auto add = [&](v1::SampleView view) {
    if (view.row().state() != v1::TRAINED) return true;
    problem = view.problem();
    *batch.add_samples() = std::move(*view.mutable_sample());
    return problem.empty();
  };
  RLHF_RETURN_IF_ERROR(EachSample(stub, job_id, add, step));
  if (!problem.empty())
    return absl::FailedPreconditionError(absl::StrCat("step ", step, " cannot be replayed, a sample of it: ", problem));
  batch.set_total_samples(batch.samples_size());
  batch.set_last(true);
  return Here(WriteFileDurably(file, batch.SerializeAsString()));
}

absl::Status Export(const ConnectionFlags& connection, const ReplayFlags& flags) {
  RLHF_ASSIGN_OR_RETURN(const auto channel, Connect(connection));
  const auto stub = v1::JobService::NewStub(channel);
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, FindJob(*stub, connection.project, flags.job));
  if (!job.spec().has_ppo())
    return absl::InvalidArgumentError(absl::StrCat(job.id(), ": expected a PPO job (only its batches are recorded)"));
  RLHF_RETURN_IF_ERROR(Here(MakeDirs(flags.out + "/batches")));
  v1::GetLedgerRequest ledger_request;
  ledger_request.set_job_id(job.id());
  ledger_request.set_check(true);
  v1::GetLedgerResponse ledger;
  RLHF_RETURN_IF_ERROR(FromGrpc(stub->GetLedger(CallContext(absl::Minutes(5)).get(), ledger_request, &ledger)));
  for (int64_t step = job.start().step() + 1; step <= job.step(); ++step)
    RLHF_RETURN_IF_ERROR(ExportBatch(*stub, job.id(), step, absl::StrCat(flags.out, "/batches/", step, ".pb")));
  client::ArtifactCache artifacts("", flags.out + "/artifacts", channel);
  const std::set<std::string> read = LearnerReferences(job.spec());
  for (const auto& [reference, digest] : job.resolved())
    if (read.count(reference) > 0) RLHF_RETURN_IF_ERROR(artifacts.Fetch(digest).status());
  if (job.has_start()) RLHF_RETURN_IF_ERROR(artifacts.Fetch(job.start().checkpoint()).status());
  RLHF_RETURN_IF_ERROR(Here(WriteFileDurably(flags.out + "/committed.pb", ledger.SerializeAsString())));
  return Here(WriteFileDurably(flags.out + "/job.pb", job.SerializeAsString()));
}

int Replay(const ConnectionFlags& connection, const ReplayFlags& flags) {
  if (const absl::Status status = Export(connection, flags); !status.ok()) return Fail(status);
  const std::string program = flags.bin_dir + "/rlhf-replay", threads = absl::StrCat(flags.threads);
  const pid_t child = fork();
  if (child == 0) {
    execl(program.c_str(), program.c_str(), flags.out.c_str(), "--threads", threads.c_str(),
          static_cast<char*>(nullptr));
    std::fprintf(stderr, "rlhfctl: error: cannot run %s; it is built with LibTorch, beside rlhf-learner\n",
                 program.c_str());
    _exit(v1::EXIT_ERROR);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return v1::EXIT_ERROR;
  return WEXITSTATUS(status);
}

}  // namespace

void AddReplayCommand(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<ReplayFlags>();
  std::error_code error;
  flags->bin_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();
  auto* replay = app.add_subcommand(
      "replay", "Train a PPO job's recorded batches once more, undisturbed, and compare every step's digests");
  replay->add_option("job", flags->job, "Job id or name")->required();
  replay->add_option("--out", flags->out, "Folder for its batches and models")->required();
  replay->add_option("--threads", flags->threads, "Compute threads a rank; must be the job's")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  replay->add_option("--bin-dir", flags->bin_dir, "Where rlhf-replay is (default: beside rlhfctl)");
  replay->callback([=, &connection] { *run = [=, &connection] { return Replay(connection, *flags); }; });
}

}  // namespace rlhf::cli
