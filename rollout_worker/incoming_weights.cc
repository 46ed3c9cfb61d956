#include "rollout_worker/incoming_weights.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::rollout {

absl::StatusOr<IncomingWeights> IncomingWeights::Begin(std::shared_ptr<uint8_t[]> memory, uint64_t size,
                                                       FetchedWeights* out) {
  IncomingWeights incoming;
  incoming.bytes_ = std::move(memory);
  out->owner = incoming.bytes_;
  out->bytes = absl::MakeConstSpan(incoming.bytes_.get(), size);
  RLHF_ASSIGN_OR_RETURN(incoming.parts_, PartsOf(out->manifest, out->delta, out->bytes));
  incoming.out_ = out;
  RLHF_RETURN_IF_ERROR(incoming.Verify());  // of what is empty
  return incoming;
}

absl::Status IncomingWeights::Take(uint64_t offset, absl::Span<const uint8_t> bytes) {
  if (offset != received_ || bytes.size() > size() - received_) {
    return absl::DataLossError(absl::StrCat("weights stream: expected bytes at ", received_, " of ", size(), ", found ",
                                            bytes.size(), " at ", offset));
  }
  while (!bytes.empty()) {
    const absl::Span<const uint8_t> piece = bytes.subspan(0, DigestEnd() - received_);
    std::memcpy(bytes_.get() + received_, piece.data(), piece.size());
    digest_.Update(bytes_.get() + received_, piece.size());
    received_ += piece.size();
    bytes.remove_prefix(piece.size());
    RLHF_RETURN_IF_ERROR(Verify());
  }
  return absl::OkStatus();
}

void IncomingWeights::ForgetUnverified() {
  received_ = verified_end();
  digest_.Reset();
}

uint64_t IncomingWeights::verified_end() const {
  if (out_->delta) return complete() ? size() : 0;
  return complete() ? size() : static_cast<uint64_t>(parts_[verified_].bytes.data() - out_->bytes.data());
}

absl::Status IncomingWeights::Verify() {
  if (out_->delta) return VerifyDelta();
  for (; verified_ < parts_.size() && EndOf(parts_[verified_]) <= received_; ++verified_) {
    const v1::TensorEntry& entry = out_->manifest.tensors(static_cast<int>(verified_));
    if (digest_.Hex() != entry.xxh3()) return Refuse(absl::StrCat("tensor ", entry.name()));
    digest_.Reset();
  }
  return absl::OkStatus();
}

absl::Status IncomingWeights::VerifyDelta() {
  if (received_ < size()) return absl::OkStatus();
  const std::string& xxh3 = out_->manifest.delta().xxh3();
  if (!xxh3.empty() && digest_.Hex() != xxh3) return Refuse("the delta");
  for (size_t i = 0; i < parts_.size() && xxh3.empty(); ++i) {
    const v1::TensorEntry& entry = out_->manifest.tensors(static_cast<int>(i));
    if (parts_[i].whole && artifact::Xxh3Hex(parts_[i].bytes.data(), parts_[i].bytes.size()) != entry.xxh3())
      return Refuse(absl::StrCat("tensor ", entry.name()));
  }
  verified_ = parts_.size();
  return absl::OkStatus();
}

absl::Status IncomingWeights::Refuse(const std::string& what) {
  ForgetUnverified();
  return absl::DataLossError(absl::StrCat("weights stream: ", what, " does not match its digest in the manifest"));
}

}  // namespace rlhf::rollout
