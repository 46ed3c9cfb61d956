// How many logits are in memory at once while a learner trains: what makes them (model/log_probs.h) and what foretells
// their memory (cli/memory_plan.h) go by the same numbers.
#pragma once

#include <cstdint>

namespace rlhf {

inline constexpr int64_t kLogitsRows = 1024;     // are made at once
inline constexpr int64_t kKeptLogits = 1 << 24;  // numbers, 64 MiB: what forward keeps for backward, or one chunk

}  // namespace rlhf
