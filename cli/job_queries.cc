#include "cli/job_queries.h"

#include <utility>

#include "cli/connection.h"
#include "cli/pages.h"
#include "common/status_util.h"

namespace rlhf::cli {

absl::StatusOr<v1::Job> FindJob(v1::JobService::Stub& stub, const std::string& project, const std::string& name) {
  v1::GetJobRequest request;
  request.set_job_id(name);
  request.set_project(project);
  v1::Job job;
  const auto context = CallContext();
  RLHF_RETURN_IF_ERROR(FromGrpc(stub.GetJob(context.get(), request, &job)));
  return job;
}

absl::StatusOr<std::vector<v1::MetricPoint>> AllMetrics(v1::JobService::Stub& stub, const std::string& job_id) {
  v1::ListMetricsRequest request;
  request.set_job_id(job_id);
  request.mutable_page()->set_page_size(1000);
  return AllPages<v1::MetricPoint>(
      stub, &v1::JobService::Stub::ListMetrics, request,
      [](const v1::ListMetricsResponse& page) -> const auto& { return page.points(); });
}

absl::StatusOr<std::vector<v1::Job>> StagesOf(v1::JobService::Stub& stub, const v1::Job& job) {
  if (job.children().empty()) return std::vector<v1::Job>{job};
  std::vector<v1::Job> stages;
  for (const std::string& child : job.children()) {
    RLHF_ASSIGN_OR_RETURN(stages.emplace_back(), FindJob(stub, job.spec().project(), child));
  }
  return stages;
}

absl::Status EachSample(v1::JobService::Stub& stub, const std::string& job_id,
                        absl::FunctionRef<bool(v1::SampleView)> take, std::optional<int64_t> step) {
  v1::ListSamplesRequest request;
  request.set_job_id(job_id);
  if (step.has_value()) request.set_step(*step);
  request.mutable_page()->set_page_size(500);
  const auto take_page = [&](v1::ListSamplesResponse& page) {
    for (v1::SampleView& view : *page.mutable_samples()) {
      if (!take(std::move(view))) return false;
    }
    return true;
  };
  return EachPage(stub, &v1::JobService::Stub::ListSamples, request, take_page, absl::Seconds(60));
}

}  // namespace rlhf::cli
