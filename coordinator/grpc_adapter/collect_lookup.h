// Which collect job a rater means. Loop thread only.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/grpc_adapter/edge.h"

namespace rlhf::coordinator {

struct CollectTarget {
  std::string job_id;         // the open collect job; empty: there is none now …
  bool closed = false;        // … and none will come
  std::string last_id;        // then: the one that was open last, if any
  bool more_to_come = false;  // the pipeline has further collect stages after this one
};

// `reference` is the id or name of a collect job, or of a pipeline with collect stages, or empty for any open one of
// the project. InvalidArgument for a job of another kind; UNKNOWN_JOB; PROJECT_NOT_ALLOWED.
absl::StatusOr<CollectTarget> FindCollect(const Edge& edge, const Caller& caller, const std::string& reference,
                                          const std::string& project);

}  // namespace rlhf::coordinator
