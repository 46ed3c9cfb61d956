// What several commands ask about a job, page by page where it is long.
#pragma once

#include <cstdint>
#include <optional>
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
// The job itself or, of a pipeline, its stages in order.
absl::StatusOr<std::vector<v1::Job>> StagesOf(v1::JobService::Stub& stub, const v1::Job& job);
// Calls `take` with the samples, of one step where it is named, in issue order, until it returns false.
absl::Status EachSample(v1::JobService::Stub& stub, const std::string& job_id,
                        absl::FunctionRef<bool(v1::SampleView)> take, std::optional<int64_t> step = std::nullopt);

}  // namespace rlhf::cli
