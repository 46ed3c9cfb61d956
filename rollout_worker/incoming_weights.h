// A version's stream that is being received, from whichever source, and how much of it is verified.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "artifact/digest.h"
#include "rollout_worker/fetched_weights.h"

namespace rlhf::rollout {

// Of one thread.
class IncomingWeights {
 public:
  // Into out->bytes, which are `memory`, `size` bytes; `out` outlives it. DataLoss when its manifest does not fit them.
  static absl::StatusOr<IncomingWeights> Begin(std::shared_ptr<uint8_t[]> memory, uint64_t size, FetchedWeights* out);

  uint64_t received() const { return received_; }
  uint64_t size() const { return out_->bytes.size(); }
  bool complete() const { return verified_ == parts_.size(); }

  // The stream's next bytes, to their place and into their digest while they are in the cache. DataLoss: the source is
  // not to be trusted; what it sent of a tensor that does not match is forgotten.
  absl::Status Take(uint64_t offset, absl::Span<const uint8_t> bytes);
  // Also what was received of a tensor that is not verified.
  void ForgetUnverified();
  // Bytes up to here will not change any more.
  uint64_t verified_end() const;

 private:
  IncomingWeights() = default;

  uint64_t EndOf(const WeightPart& part) const {
    return static_cast<uint64_t>(part.bytes.data() + part.bytes.size() - out_->bytes.data());
  }
  // Where what is being digested ends: a delta's stream has one digest, for a tensor's is of what it leads to.
  uint64_t DigestEnd() const { return out_->delta ? size() : EndOf(parts_[verified_]); }
  absl::Status Verify();
  absl::Status VerifyDelta();
  absl::Status Refuse(const std::string& what);

  FetchedWeights* out_ = nullptr;
  std::shared_ptr<uint8_t[]> bytes_;
  std::vector<WeightPart> parts_;
  size_t verified_ = 0;  // tensors
  uint64_t received_ = 0;
  artifact::Xxh3 digest_;  // of what is received of the tensor, or the delta, that is not verified
};

}  // namespace rlhf::rollout
