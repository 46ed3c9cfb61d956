// Local files named in a job's specification become artifacts before it is submitted.
#pragma once

#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::cli {

// Replaces every string "file:PATH" (relative to base_dir) of the specification, also in lists, by the digest of the
// uploaded artifact, and returns those artifacts. NotFound names field and path. With a null channel nothing is
// uploaded: paths are checked and replaced by the digest they would have, which alone the artifacts then hold.
absl::StatusOr<std::vector<v1::Artifact>> UploadFileReferences(const std::shared_ptr<grpc::Channel>& channel,
                                                               const std::string& base_dir, const std::string& project,
                                                               v1::JobSpec* spec);

}  // namespace rlhf::cli
