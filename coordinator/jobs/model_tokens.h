// A PPO job's models that are given the policy's token ids: with another tokenizer's numbers they would read other
// text.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/artifacts.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

struct TokenReader {
  std::string field;   // "ppo.critic", "ppo.reference"
  std::string model;   // as the specification names it
  std::string policy;  // the same of the policy
  Artifacts::Finder find, find_policy;
};

// Those that are other models than the policy. What is not read (a critic of an estimator without one, a reference of a
// policy with adapters) is left out.
std::vector<TokenReader> TokenReadersOf(const v1::Job& job, const Artifacts& artifacts);

// InvalidArgument names the field, and the first token that differs. A model that is not here, or is without a
// tokenizer, is passed over. Unavailable (STORE_UNAVAILABLE) while the artifacts' volume is not there. Reads and parses
// tokenizers: for the background; any thread.
absl::Status CheckTokenReaders(const std::vector<TokenReader>& readers);

}  // namespace rlhf::coordinator
