// Scores over gRPC, from whichever reward server the logic names. Thread-safe.
#pragma once

#include <memory>

#include "common/tls.h"
#include "coordinator/sampling.h"

namespace rlhf::coordinator {

// The destructor cancels what is in flight and waits for its callbacks.
std::unique_ptr<RewardClient> MakeGrpcRewardClient(const TlsFiles& tls);

}  // namespace rlhf::coordinator
