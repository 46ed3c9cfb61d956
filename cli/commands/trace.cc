// trace: who of the fleet was busy when with a job, as a Chrome trace.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "cli/part_file.h"
#include "cli/report/timeline.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

absl::StatusOr<TimelineJob> Gather(v1::JobService::Stub& stub, v1::Job job) {
  TimelineJob found;
  RLHF_ASSIGN_OR_RETURN(found.points, AllMetrics(stub, job.id()));
  RLHF_RETURN_IF_ERROR(EachSample(stub, job.id(), [&found](v1::SampleView view) {
    // Of two attempts the row names the newest one's worker, the sample that whose result was taken.
    if (!view.sample().worker_id().empty()) view.mutable_row()->set_worker_id(view.sample().worker_id());
    found.rows.push_back(std::move(*view.mutable_row()));
    return true;
  }));
  found.job = std::move(job);
  return found;
}

absl::StatusOr<std::vector<TimelineJob>> GatherAll(const ConnectionFlags& connection, const std::string& id) {
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(connection));
  const auto stub = v1::JobService::NewStub(channel);
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, FindJob(*stub, connection.project, id));
  RLHF_ASSIGN_OR_RETURN(std::vector<v1::Job> stages, StagesOf(*stub, job));
  std::vector<TimelineJob> jobs;
  for (v1::Job& stage : stages) {
    RLHF_ASSIGN_OR_RETURN(jobs.emplace_back(), Gather(*stub, std::move(stage)));
  }
  return jobs;
}

// For programs: JSON is YAML too.
void PrintAccount(const std::string& out, const Timeline& timeline) {
  nlohmann::ordered_json account = {{"file", out}, {"generations", timeline.leases}, {"scorings", timeline.scorings}};
  if (const LearnerShare& learner = timeline.learner; learner.steps > 0) {
    account["learner"] = {{"steps", learner.steps},
                          {"seconds", learner.seconds},
                          {"idle", learner.idle},
                          {"update", learner.update},
                          {"commit", learner.publish}};
  }
  std::printf("%s\n", account.dump(1).c_str());
}

int Trace(const ConnectionFlags& connection, const std::string& id, const std::string& out) {
  const auto jobs = GatherAll(connection, id);
  if (!jobs.ok()) return Fail(jobs.status());
  const Timeline timeline = MakeTimeline(*jobs);
  if (const absl::Status status = WriteWhole(out, timeline.chrome_json); !status.ok()) return Fail(status);
  if (connection.output != "table") {
    PrintAccount(out, timeline);
    return v1::EXIT_OK;
  }
  std::printf("%s: %lld generations, %lld scorings; open it with https://ui.perfetto.dev or chrome://tracing\n",
              out.c_str(), static_cast<long long>(timeline.leases), static_cast<long long>(timeline.scorings));
  const LearnerShare& learner = timeline.learner;
  if (learner.steps == 0) {
    std::printf("learner: no step whose phases are known (only ppo jobs note them)\n");
  } else {
    std::printf("learner: %lld steps in %.1f s: idle %.1f%% (waiting for samples), update %.1f%%, commit %.1f%%\n",
                static_cast<long long>(learner.steps), learner.seconds, 100 * learner.idle, 100 * learner.update,
                100 * learner.publish);
  }
  return v1::EXIT_OK;
}

}  // namespace

void AddTraceCommand(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto id = std::make_shared<std::string>();
  const auto out = std::make_shared<std::string>("trace.json");
  auto* trace = app.add_subcommand("trace", "Write when each role was busy with a job, as a Chrome trace");
  trace->add_option("job", *id, "Job id or name")->required();
  trace->add_option("--out", *out, "The file to write")->capture_default_str();
  trace->callback([=, &connection] { *run = [=, &connection] { return Trace(connection, *id, *out); }; });
}

}  // namespace rlhf::cli
