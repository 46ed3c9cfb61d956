// report: one self-contained HTML file about a job.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "cli/part_file.h"
#include "cli/report/report.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

constexpr size_t kSamplesOfAnEvaluation = 4000;

absl::StatusOr<ReportStage> Gather(v1::JobService::Stub& stub, const v1::Job& job) {
  ReportStage stage;
  stage.job = job;
  RLHF_ASSIGN_OR_RETURN(stage.points, AllMetrics(stub, job.id()));
  if (!job.spec().has_evaluate()) return stage;
  RLHF_RETURN_IF_ERROR(EachSample(stub, job.id(), [&stage](v1::SampleView view) {
    stage.samples.push_back(std::move(view));
    return stage.samples.size() < kSamplesOfAnEvaluation;
  }));
  return stage;
}

absl::StatusOr<ReportData> GatherAll(const ConnectionFlags& connection, const std::string& id) {
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(connection));
  const auto stub = v1::JobService::NewStub(channel);
  ReportData data;
  RLHF_ASSIGN_OR_RETURN(data.job, FindJob(*stub, connection.project, id));
  RLHF_ASSIGN_OR_RETURN(const std::vector<v1::Job> stages, StagesOf(*stub, data.job));
  for (const v1::Job& stage : stages) {
    RLHF_ASSIGN_OR_RETURN(data.stages.emplace_back(), Gather(*stub, stage));
  }
  return data;
}

int Report(const ConnectionFlags& connection, const std::string& id, const std::string& out) {
  auto data = GatherAll(connection, id);
  if (!data.ok()) return Fail(data.status());
  if (const absl::Status status = WriteWhole(out, RenderReport(*data)); !status.ok()) return Fail(status);
  std::printf("%s\n", out.c_str());
  return v1::EXIT_OK;
}

}  // namespace

void AddReportCommand(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto id = std::make_shared<std::string>();
  const auto out = std::make_shared<std::string>("report.html");
  auto* report = app.add_subcommand("report", "Write one self-contained HTML file about a job");
  report->add_option("job", *id, "Job id or name")->required();
  report->add_option("--out", *out, "The file to write")->capture_default_str();
  report->callback([=, &connection] { *run = [=, &connection] { return Report(connection, *id, *out); }; });
}

}  // namespace rlhf::cli
