// What several commands ask about a job, page by page where it is long.
#pragma once

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {

// A job by its id or, in the project, its name.
absl::StatusOr<v1::Job> FindJob(v1::JobService::Stub& stub, const std::string& project, const std::string& name);
absl::StatusOr<std::vector<v1::MetricPoint>> AllMetrics(v1::JobService::Stub& stub, const std::string& job_id);
// Calls `take` with the samples in issue order, until it returns false.
absl::Status EachSample(v1::JobService::Stub& stub, const std::string& job_id,
                        absl::FunctionRef<bool(v1::SampleView)> take);

}  // namespace rlhf::cli
