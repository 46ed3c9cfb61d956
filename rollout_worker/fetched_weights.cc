#include "rollout_worker/fetched_weights.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "artifact/weight_delta.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "model/device.h"
#include "model/guard.h"
#include "model/tensor_types.h"

namespace rlhf::rollout {
namespace {

// A job's precision is the learner's, a worker's is its own: with another type the model is right and the worker is
// not.
absl::Status CheckEntry(const v1::TensorEntry& entry, const torch::Tensor& parameter) {
  const std::vector<int64_t> shape(entry.shape().begin(), entry.shape().end());
  const absl::StatusOr<artifact::DType> known = model::FromTorch(parameter.scalar_type());
  const std::string type = known.ok() ? artifact::DTypeName(*known) : c10::toString(parameter.scalar_type());
  const bool same_shape = parameter.sizes() == c10::IntArrayRef(shape);
  if (same_shape && entry.dtype() == type && entry.size() == parameter.nbytes()) return absl::OkStatus();
  const bool wide = entry.dtype() == "F32";
  const auto numbers = static_cast<uint64_t>(parameter.numel());
  if (same_shape && entry.dtype() != type && (wide || entry.dtype() == "BF16") &&
      entry.size() == numbers * (wide ? 4 : 2)) {
    return UnsuitedError(absl::StrCat("the job's weights are of type ", entry.dtype(), ", this worker computes with ",
                                      type, ": start this worker with --precision ", wide ? "float32" : "bfloat16"));
  }
  return absl::InvalidArgumentError(absl::StrCat("tensor ", entry.name(), ": expected ", type, " of ",
                                                 parameter.nbytes(), " bytes, found ", entry.dtype(), " of ",
                                                 entry.size()));
}

// A tensor of a model, its bytes on the host (its own ones where it is there), and what goes into it.
struct Target {
  const v1::TensorEntry* entry;
  torch::Tensor parameter, host;
  WeightPart part;
  std::vector<uint8_t> delta;  // once it is applied: what leads back
  absl::Span<uint8_t> held() const { return absl::MakeSpan(static_cast<uint8_t*>(host.data_ptr()), host.nbytes()); }
  absl::Status Swap() { return artifact::SwapWeightDelta(absl::MakeSpan(delta), host.element_size(), held()); }
};

// Puts the changed elements into the hosts' bytes, and takes them out again when a tensor is not the version's then.
absl::Status ApplyDelta(std::vector<Target>* targets) {
  absl::Status status;
  size_t done = 0;
  for (; done < targets->size() && status.ok(); ++done) {
    Target& target = (*targets)[done];
    target.host = model::ToHost(target.parameter);
    target.delta.assign(target.part.bytes.begin(), target.part.bytes.end());  // what was received may be relayed still
    status = target.Swap();
    if (!status.ok()) break;  // changed nothing
    if (artifact::Xxh3Hex(target.held().data(), target.held().size()) != target.entry->xxh3()) {
      status = absl::DataLossError(absl::StrCat("weights delta: tensor ", target.entry->name(),
                                                " does not match its digest; fetching it whole"));
    }
  }
  if (!status.ok()) {
    while (done > 0) RLHF_RETURN_IF_ERROR((*targets)[--done].Swap());
    return status;
  }
  for (Target& target : *targets) {
    if (target.host.data_ptr() != target.parameter.data_ptr()) model::CopyInto(target.parameter, target.host);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<WeightPart>> PartsOf(const v1::WeightsManifest& manifest, bool delta,
                                                absl::Span<const uint8_t> bytes) {
  if (delta && manifest.delta().sizes_size() != manifest.tensors_size()) {
    return absl::DataLossError(absl::StrCat("weights manifest: expected a delta of ", manifest.tensors_size(),
                                            " tensors, found ", manifest.delta().sizes_size()));
  }
  std::vector<WeightPart> parts;
  uint64_t next = 0;
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    const v1::TensorEntry& entry = manifest.tensors(i);
    const uint64_t size = delta ? manifest.delta().sizes(i) : entry.size();
    if ((!delta && entry.offset() != next) || size > bytes.size() - next) {
      return absl::DataLossError(absl::StrCat("weights manifest: expected tensor ", entry.name(), " at ", next,
                                              " within the stream of ", bytes.size(), " bytes, found ", size,
                                              " bytes at ", delta ? next : entry.offset()));
    }
    parts.push_back({bytes.subspan(next, size), size == entry.size()});
    next += size;
  }
  if (next != bytes.size()) {
    return absl::DataLossError(
        absl::StrCat("weights manifest: expected tensors of ", bytes.size(), " bytes, found ", next));
  }
  return parts;
}

absl::Status ApplyWeights(const FetchedWeights& weights, model::Transformer& model) {
  return model::Guard("applying weights", [&]() -> absl::Status {
    RLHF_ASSIGN_OR_RETURN(const std::vector<WeightPart> parts, PartsOf(weights.manifest, weights.delta, weights.bytes));
    std::map<std::string, size_t> entries;
    for (size_t i = 0; i < parts.size(); ++i) entries[weights.manifest.tensors(static_cast<int>(i)).name()] = i;
    const auto& parameters = model.trained_parameters();
    if (entries.size() != parameters.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights have ", entries.size(), " tensors; the model has ", parameters.size()));
    }
    // Everything is checked before anything is written: a refused version leaves the old one whole.
    std::vector<Target> whole, changed;
    for (const auto& [name, parameter] : parameters) {
      const auto at = entries.find(name);
      if (at == entries.end()) return absl::InvalidArgumentError(absl::StrCat("weights lack tensor ", name));
      const v1::TensorEntry& entry = weights.manifest.tensors(static_cast<int>(at->second));
      RLHF_RETURN_IF_ERROR(CheckEntry(entry, parameter));
      (parts[at->second].whole ? whole : changed).push_back({&entry, parameter, {}, parts[at->second], {}});
    }
    const torch::NoGradGuard no_grad;
    RLHF_RETURN_IF_ERROR(ApplyDelta(&changed));
    for (Target& target : whole) {
      // Copied from only; LibTorch has no view of what may not be written.
      auto* const bytes =
          const_cast<uint8_t*>(target.part.bytes.data());  // NOLINT(cppcoreguidelines-pro-type-const-cast)
      model.SetParameter(
          target.entry->name(),
          torch::from_blob(bytes, target.parameter.sizes(),
                           torch::TensorOptions().dtype(target.parameter.scalar_type()).device(weights.device)));
    }
    return absl::OkStatus();
  });
}

}  // namespace rlhf::rollout
