// Follows a job until it ends, across lost connections, showing progress.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {

struct FollowOptions {
  bool json = false;      // events as JSON lines instead
  bool terminal = false;  // live bars
  int width = 100;
};
// The ended job. Reconnects with the resume token while the coordinator is unreachable, for at most five minutes at a
// time.
absl::StatusOr<v1::Job> FollowJob(const std::shared_ptr<grpc::Channel>& channel, const std::string& job_id,
                                  const FollowOptions& options);

// rlhf.v1.ExitCode of an ended job.
int ExitCodeOf(const v1::Job& job);
// One line on how it ended and where to look next.
std::string Verdict(const v1::Job& job);
FollowOptions FollowOptionsForStdout(const std::string& output);

}  // namespace rlhf::cli
