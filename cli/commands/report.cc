// report: one self-contained HTML file about a job.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands/commands.h"
#include "cli/report/report.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

constexpr size_t kSamplesOfAnEvaluation = 4000;

absl::StatusOr<ReportStage> Gather(v1::JobService::Stub& stub, const v1::Job& job) {
  ReportStage stage;
  stage.job = job;
  v1::ListMetricsRequest metrics;
  metrics.set_job_id(job.id());
  metrics.mutable_page()->set_page_size(1000);
  do {
    v1::ListMetricsResponse response;
    const auto context = CallContext();
    RLHF_RETURN_IF_ERROR(FromGrpc(stub.ListMetrics(context.get(), metrics, &response)));
    stage.points.insert(stage.points.end(), response.points().begin(), response.points().end());
    metrics.mutable_page()->set_page_token(response.next_page_token());
  } while (!metrics.page().page_token().empty());
  if (!job.spec().has_evaluate()) return stage;
  v1::ListSamplesRequest samples;
  samples.set_job_id(job.id());
  samples.mutable_page()->set_page_size(500);
  do {
    v1::ListSamplesResponse response;
    const auto context = CallContext(absl::Seconds(60));
    RLHF_RETURN_IF_ERROR(FromGrpc(stub.ListSamples(context.get(), samples, &response)));
    stage.samples.insert(stage.samples.end(), response.samples().begin(), response.samples().end());
    samples.mutable_page()->set_page_token(response.next_page_token());
  } while (!samples.page().page_token().empty() && stage.samples.size() < kSamplesOfAnEvaluation);
  return stage;
}

absl::StatusOr<ReportData> GatherAll(const ConnectionFlags& connection, const std::string& id) {
  RLHF_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(connection));
  const auto stub = v1::JobService::NewStub(channel);
  const auto get = [&](const std::string& name) -> absl::StatusOr<v1::Job> {
    v1::GetJobRequest request;
    request.set_job_id(name);
    request.set_project(connection.project);
    v1::Job job;
    const auto context = CallContext();
    RLHF_RETURN_IF_ERROR(FromGrpc(stub->GetJob(context.get(), request, &job)));
    return job;
  };
  ReportData data;
  RLHF_ASSIGN_OR_RETURN(data.job, get(id));
  if (data.job.children().empty()) {
    RLHF_ASSIGN_OR_RETURN(ReportStage stage, Gather(*stub, data.job));
    data.stages.push_back(std::move(stage));
  }
  for (const std::string& child : data.job.children()) {
    RLHF_ASSIGN_OR_RETURN(const v1::Job job, get(child));
    RLHF_ASSIGN_OR_RETURN(ReportStage stage, Gather(*stub, job));
    data.stages.push_back(std::move(stage));
  }
  return data;
}

int Report(const ConnectionFlags& connection, const std::string& id, const std::string& out) {
  auto data = GatherAll(connection, id);
  if (!data.ok()) return Fail(data.status());
  if (const absl::Status status = WriteFileDurably(out, RenderReport(*data)); !status.ok()) return Fail(status);
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
