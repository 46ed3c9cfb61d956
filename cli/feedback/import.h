// Files of comparisons into a set of the coordinator: parsed on a few threads, sent as one stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/channel.h>

#include "absl/status/statusor.h"
#include "cli/feedback/formats.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::cli {

struct ImportResult {
  v1::ImportComparisonsResponse response;  // counts of both sides
  std::vector<std::string> problems;       // "FILE:LINE: reason", in the files' order; at most 1000
};
// Bad records are problems; good ones are kept. Records of different formats may be mixed with kAuto. An error of the
// service, or of reading a file, is returned; what was sent before it may have been imported: importing again is
// harmless.
absl::StatusOr<ImportResult> ImportFiles(const std::shared_ptr<grpc::Channel>& channel, const std::string& project,
                                         const std::string& set, const std::vector<std::string>& files, Format format);

}  // namespace rlhf::cli
