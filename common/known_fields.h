// Parts of a message that only a newer release knows. Who is to act by a message (run a job, generate, score, train)
// refuses one that has any, for what it does not know may change what the rest means; whoever only hands it on need not
// look. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rlhf {

struct NewerPart {
  std::string field;  // its path from the message: "ppo.kl.#900", of a field its number; "ppo.stages[2].kind"
  std::string found;  // "expected a field that is known, found one of number 900"
};

// Fields without a name and values of enums without one, in the message and all within it; at most `most`.
std::vector<NewerPart> NewerParts(const google::protobuf::Message& message, size_t most = 8);

// OK when there are none; else an UnsuitedError (common/unsuited.h) that names the first. `what`: "job x's
// specification"; `who`: "this rollout worker", which is to be updated.
absl::Status CheckKnown(const google::protobuf::Message& message, absl::string_view what, absl::string_view who);

}  // namespace rlhf
