// What is written beside an approved policy: what it is, what it was made from, who approved it, on what grounds. Pure
// functions; ids, digests and numbers only, never a prompt or a sample.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "common/signature.h"
#include "rlhf/v1/oversight_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

struct ModelCardInputs {
  v1::Job pipeline;
  v1::GateRow gate;  // that approved the policy
  v1::Lineage lineage;
  absl::Time at;
  std::string key_sha256;  // of the key that signs the card; empty: nobody does
};

// Pretty-printed, keys in a fixed order.
std::string ModelCardJson(const ModelCardInputs& inputs);
// The same for people.
std::string ModelCardMarkdown(const std::string& json);
// model_card.json, model_card.md, and with a key model_card.json.sig (base64 of the Ed25519 signature of the JSON) and
// model_card.pub, into a folder.
absl::Status WriteModelCard(const ModelCardInputs& inputs, const Signer* signer, const std::string& dir);

}  // namespace rlhf::coordinator
