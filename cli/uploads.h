// Local files named in a job's specification become artifacts before it is submitted.
#pragma once

#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::cli {

// NotFound or PermissionDenied, of this machine (Here), for a path at which there is nothing, or a file that cannot be
// read; InvalidArgument for a file name that is other than UTF-8. What is hidden is not looked at: it is not uploaded.
absl::Status CheckReadable(const std::string& path);

// Replaces every string "file:PATH" (relative to base_dir) of the specification, also in lists, by the digest of the
// uploaded artifact, and returns those artifacts. NotFound names field and path. With a null channel nothing is
// uploaded: paths are checked and replaced by the digest they would have, which alone the artifacts then hold.
absl::StatusOr<std::vector<v1::Artifact>> UploadFileReferences(const std::shared_ptr<grpc::Channel>& channel,
                                                               const std::string& base_dir, const std::string& project,
                                                               v1::JobSpec* spec);

}  // namespace rlhf::cli
