// What the disk and gRPC alone can do here, to state a coordinator's load as a share of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"

namespace rlhf::bench {

struct DiskLimits {
  double append_mb_per_second = 0;  // sequential, synced every MiB
  double syncs_per_second = 0;      // appends of 4 KiB, each synced
};
absl::StatusOr<DiskLimits> MeasureDisk(const std::string& dir);

// Calls a second of SubmitSamples with one sample of so many tokens, over `connections`, that the coordinator refuses
// at its door (unknown session): transport, TLS, parsing and one turn of the event loop, nothing else.
absl::StatusOr<double> MeasureRefusedSubmits(const std::vector<std::shared_ptr<grpc::Channel>>& connections,
                                             int response_tokens);

}  // namespace rlhf::bench
