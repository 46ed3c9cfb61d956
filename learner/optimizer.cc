#include "learner/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::learner {

double LearningRateAt(const v1::OptimizerSpec& spec, int64_t update, int64_t total) {
  const double rate = spec.learning_rate();
  if (update < spec.warmup_steps()) return rate * static_cast<double>(update + 1) / spec.warmup_steps();
  if (spec.schedule() != v1::LINEAR && spec.schedule() != v1::COSINE) return rate;
  const auto decay = static_cast<double>(std::max<int64_t>(1, total - 1 - spec.warmup_steps()));
  const double done = std::clamp(static_cast<double>(update - spec.warmup_steps()) / decay, 0.0, 1.0);
  const double left = spec.schedule() == v1::LINEAR ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  const double final_ratio = spec.final_learning_rate_ratio();
  return rate * (final_ratio + (1 - final_ratio) * left);
}

AdamW::AdamW(NamedTensors parameters, const v1::OptimizerSpec& spec, int64_t total_updates)
    : parameters_(std::move(parameters)), spec_(spec), total_updates_(total_updates) {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    segments_.push_back({i, 0, parameter(i).numel(), 0});
    masters_.push_back(parameter(i).scalar_type() == torch::kFloat32 ? parameter(i).detach()
                                                                     : parameter(i).detach().to(torch::kFloat32));
    exp_avg_.push_back(torch::zeros_like(masters_.back()));
    exp_avg_sq_.push_back(torch::zeros_like(masters_.back()));
  }
}

AdamW::AdamW(NamedTensors parameters, std::vector<Bucket> buckets, const v1::OptimizerSpec& spec, int64_t total_updates)
    : parameters_(std::move(parameters)), buckets_(std::move(buckets)), spec_(spec), total_updates_(total_updates) {}

torch::Tensor AdamW::Flattened(const Segment& segment) const {
  return parameter(segment.parameter).detach().view({-1}).narrow(0, segment.begin, segment.size);
}

bool AdamW::HasMaster(const Bucket& bucket) const {
  return bucket.layer >= 0 || parameter(bucket.parameters.front().parameter).scalar_type() != torch::kFloat32;
}

bool AdamW::IsThere(const Bucket& bucket) const {
  return parameter(bucket.parameters.front().parameter).storage().nbytes() > 0;
}

AdamW::Flats AdamW::Zeros(const Share& share) const {
  Flats flats;
  for (const Bucket& bucket : buckets_) {
    const auto options =
        torch::TensorOptions().dtype(torch::kFloat32).device(parameter(bucket.parameters.front().parameter).device());
    for (const Kind kind : {kMaster, kExpAvg, kExpAvgSq}) {
      flats[kind].push_back(kind == kMaster && !HasMaster(bucket)
                                ? torch::Tensor()
                                : torch::zeros({ShareSize(bucket, share.count)}, options));
    }
  }
  return flats;
}

void AdamW::Adopt(const Share& share, Flats flats) {
  share_ = share;
  flats_ = std::move(flats);
  snapshot_.clear();
  segments_.clear();
  bucket_of_.clear();
  for (std::vector<torch::Tensor>* tensors : {&masters_, &exp_avg_, &exp_avg_sq_}) tensors->clear();
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const int64_t first = share.index * ShareSize(buckets_[b], share.count);
    for (const Segment& segment : SegmentsOf(buckets_[b], share)) {
      const auto part = [&](Kind kind) { return flats_[kind][b].narrow(0, segment.at - first, segment.size); };
      segments_.push_back(segment);
      bucket_of_.push_back(b);
      masters_.push_back(HasMaster(buckets_[b]) ? part(kMaster) : Flattened(segment));
      exp_avg_.push_back(part(kExpAvg));
      exp_avg_sq_.push_back(part(kExpAvgSq));
    }
  }
}

void AdamW::TakeShare(const Share& share) {
  const torch::NoGradGuard no_grad;
  flats_ = {};  // the old share's memory first
  snapshot_.clear();
  Adopt(share, Zeros(share));
  for (size_t i = 0; i < segments_.size(); ++i) {
    const Bucket& bucket = buckets_[bucket_of_[i]];
    if (HasMaster(bucket) && IsThere(bucket)) masters_[i].copy_(Flattened(segments_[i]));
  }
}

// Every old share goes to all ranks, one at a time; each takes what it needs. A parameter is its master, rounded.
absl::Status AdamW::Reshare(const std::vector<int>& owners, Collective* collective) {
  const torch::NoGradGuard no_grad;
  const int count = static_cast<int>(owners.size());
  const Share next{collective->rank(), collective->world_size()};
  Flats flats = Zeros(next);
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const Bucket& bucket = buckets_[b];
    const int64_t old_size = ShareSize(bucket, count), new_size = ShareSize(bucket, next.count);
    for (int s = 0; s < count; ++s) {
      const bool mine = owners[static_cast<size_t>(s)] == collective->rank();
      if (mine && !(share_ == Share{s, count})) {
        return absl::InternalError(absl::StrCat("expected to hold share ", s, " of ", count, ", found share ",
                                                share_.index, " of ", share_.count));
      }
      const int64_t old_first = s * old_size, new_first = next.index * new_size;
      const int64_t begin = std::max(old_first, new_first), end = std::min(old_first + old_size, new_first + new_size);
      for (const Kind kind : {kMaster, kExpAvg, kExpAvgSq}) {
        torch::Tensor part =
            mine && flats_[kind][b].defined() ? flats_[kind][b] : torch::zeros({old_size}, flats[kExpAvg][b].options());
        const std::vector<Segment> segments = SegmentsOf(bucket, {s, count});
        const auto of = [&](const Segment& segment) { return part.narrow(0, segment.at - old_first, segment.size); };
        if (mine && kind == kMaster && !HasMaster(bucket)) {
          for (const Segment& segment : segments) of(segment).copy_(Flattened(segment));
        }
        RLHF_RETURN_IF_ERROR(collective->Broadcast(part, owners[static_cast<size_t>(s)]));
        if (kind == kMaster && IsThere(bucket)) {
          for (const Segment& segment : segments) Flattened(segment).copy_(of(segment));
        }
        if (begin < end && flats[kind][b].defined()) {
          flats[kind][b]
              .narrow(0, begin - new_first, end - begin)
              .copy_(part.narrow(0, begin - old_first, end - begin));
        }
      }
    }
  }
  Adopt(next, std::move(flats));
  return absl::OkStatus();
}

double AdamW::Norm(const std::vector<torch::Tensor>& gradients) {
  return std::sqrt(SquaredNorm(gradients));
}

double AdamW::SquaredNorm(const std::vector<torch::Tensor>& gradients) {
  const torch::NoGradGuard no_grad;
  if (!gradients.empty() && gradients.front().is_cuda()) {  // without a wait for each
    return torch::stack(at::_foreach_norm(gradients)).to(torch::kFloat64).square().sum().item<double>();
  }
  double squares = 0;
  for (const torch::Tensor& gradient : gradients) squares += gradient.to(torch::kFloat64).square().sum().item<double>();
  return squares;
}

void AdamW::Step(const std::vector<torch::Tensor>& gradients, double norm) {
  const torch::NoGradGuard no_grad;
  const double scale = spec_.max_grad_norm() > 0 ? std::min(1.0, spec_.max_grad_norm() / (norm + 1e-6)) : 1.0;
  const double rate = learning_rate();
  ++updates_;
  for (const bool decays : {true, false}) {
    std::vector<torch::Tensor> parameters, grads, averages, squares, steps;
    for (size_t i = 0; i < masters_.size(); ++i) {
      if ((parameter(segments_[i].parameter).dim() > 1) != decays) continue;
      if (scale != 1.0) gradients[i].mul_(scale);
      parameters.push_back(masters_[i]);
      grads.push_back(gradients[i]);
      averages.push_back(exp_avg_[i]);
      squares.push_back(exp_avg_sq_[i]);
      steps.push_back(torch::full({}, static_cast<double>(updates_),
                                  torch::TensorOptions().dtype(torch::kFloat32).device(masters_[i].device())));
    }
    if (parameters.empty()) continue;
    at::_fused_adamw_(parameters, grads, averages, squares, {}, steps, rate, spec_.beta1(), spec_.beta2(),
                      decays ? spec_.weight_decay() : 0.0, spec_.epsilon(),
                      /*amsgrad=*/false, /*maximize=*/false);
  }
  CopyMastersToParameters();
}

void AdamW::CopyMastersToParameters() {
  for (size_t i = 0; i < masters_.size(); ++i) {
    torch::Tensor& updated = parameter(segments_[i].parameter);
    if (buckets_.empty()) {
      if (updated.scalar_type() != torch::kFloat32) updated.detach().copy_(masters_[i]);
    } else if (const Bucket& bucket = buckets_[bucket_of_[i]]; HasMaster(bucket) && IsThere(bucket)) {
      Flattened(segments_[i]).copy_(masters_[i]);
    }
  }
}

absl::Status AdamW::GatherParameters(Collective* collective) {
  if (share_.count == 1) return absl::OkStatus();
  const torch::NoGradGuard no_grad;
  for (const Bucket& bucket : buckets_) {
    if (!IsThere(bucket)) continue;
    torch::Tensor all = torch::zeros({ShareSize(bucket, share_.count) * share_.count},
                                     parameter(bucket.parameters.front().parameter).options().requires_grad(false));
    for (const Segment& segment : SegmentsOf(bucket, share_))
      all.narrow(0, segment.at, segment.size).copy_(Flattened(segment));
    RLHF_RETURN_IF_ERROR(collective->AllGather(all));
    for (const Segment& segment : bucket.parameters) Flattened(segment).copy_(all.narrow(0, segment.at, segment.size));
  }
  return absl::OkStatus();
}

absl::StatusOr<torch::Tensor> AdamW::Gather(size_t bucket, Collective* collective) const {
  const torch::NoGradGuard no_grad;
  const torch::Tensor& own = flats_[kMaster][bucket];
  const torch::Tensor& first = parameter(buckets_[bucket].parameters.front().parameter);
  torch::Tensor all = torch::empty({own.numel() * share_.count}, first.options().requires_grad(false));
  all.narrow(0, share_.index * own.numel(), own.numel()).copy_(own);
  if (share_.count > 1) RLHF_RETURN_IF_ERROR(collective->AllGather(all));
  return all;
}

std::vector<StateTensor::Piece> AdamW::ParameterPieces(size_t p) const {
  std::vector<StateTensor::Piece> pieces;
  if (parameter(p).storage().nbytes() > 0) pieces.push_back({0, parameter(p).detach()});
  if (parameter(p).scalar_type() != torch::kFloat32) return pieces;  // the masters have names of their own
  for (size_t i = 0; i < bucket_of_.size(); ++i) {
    if (segments_[i].parameter == p && buckets_[bucket_of_[i]].layer >= 0)
      pieces.push_back({segments_[i].begin, masters_[i]});
  }
  return pieces;
}

absl::Status AdamW::VisitParameters(Collective* collective, const StateVisitor& visitor) const {
  absl::Status visited;
  const auto visit = [&](size_t p, const torch::Tensor& whole) -> absl::Status {
    visited.Update(visitor(parameters_[p].first, whole));
    // Ranks that write nothing wait here for one that does: for a tensor at a time, not for all in the first gather.
    return buckets_.empty() ? absl::OkStatus() : collective->Vote(true).status();
  };
  if (buckets_.empty()) {
    for (size_t p = 0; p < parameters_.size(); ++p) RLHF_RETURN_IF_ERROR(visit(p, parameter(p).detach()));
  }
  for (size_t b = 0; b < buckets_.size(); ++b) {
    torch::Tensor all;
    if (!IsThere(buckets_[b])) {
      RLHF_ASSIGN_OR_RETURN(all, Gather(b, collective));
    }
    for (const Segment& segment : buckets_[b].parameters) {
      const torch::Tensor& of = parameter(segment.parameter);
      RLHF_RETURN_IF_ERROR(visit(
          segment.parameter, all.defined() ? all.narrow(0, segment.at, segment.size).view(of.sizes()) : of.detach()));
    }
  }
  return visited;
}

State AdamW::state() const {
  State out;
  const std::array<const std::vector<torch::Tensor>*, kKinds> live = {&masters_, &exp_avg_, &exp_avg_sq_};
  std::vector<std::vector<size_t>> of_parameter(parameters_.size());
  for (size_t i = 0; i < segments_.size(); ++i) of_parameter[segments_[i].parameter].push_back(i);
  for (size_t p = 0; p < parameters_.size(); ++p) {
    for (const Kind kind : {kExpAvg, kExpAvgSq, kMaster}) {
      if (kind == kMaster && parameter(p).scalar_type() == torch::kFloat32) continue;
      StateTensor& tensor = out.emplace_back();
      tensor.name = absl::StrCat(kNames[kind], "/", parameters_[p].first);
      tensor.dtype = torch::kFloat32;
      tensor.shape = parameter(p).sizes().vec();
      for (const size_t i : of_parameter[p]) tensor.pieces.push_back({segments_[i].begin, (*live[kind])[i]});
    }
  }
  return out;
}

absl::Status AdamW::VisitState(Collective* collective, const StateVisitor& visitor) const {
  if (buckets_.empty()) return HeldHere(state())(visitor);
  if (flats_[kExpAvg].size() != buckets_.size())
    return absl::InternalError("the optimizer has taken no share of the state yet");
  const torch::NoGradGuard no_grad;
  absl::Status visited;
  for (size_t b = 0; b < buckets_.size(); ++b) {
    const int64_t size = ShareSize(buckets_[b], share_.count);
    for (const Kind kind : {kExpAvg, kExpAvgSq, kMaster}) {
      if (!flats_[kind][b].defined()) continue;
      if (kind == kMaster && parameter(buckets_[b].parameters.front().parameter).scalar_type() == torch::kFloat32)
        continue;  // they are the parameters
      torch::Tensor all = torch::empty({size * share_.count}, flats_[kind][b].options());
      all.narrow(0, share_.index * size, size).copy_(flats_[kind][b]);
      if (share_.count > 1) RLHF_RETURN_IF_ERROR(collective->AllGather(all));
      for (const Segment& segment : buckets_[b].parameters) {
        visited.Update(visitor(absl::StrCat(kNames[kind], "/", parameters_[segment.parameter].first),
                               all.narrow(0, segment.at, segment.size).view(parameter(segment.parameter).sizes())));
      }
    }
  }
  return visited;
}

void AdamW::TakeSnapshot() {
  const torch::NoGradGuard no_grad;
  snapshot_.clear();
  for (const std::vector<torch::Tensor>* tensors : {&masters_, &exp_avg_, &exp_avg_sq_}) {
    for (const torch::Tensor& tensor : *tensors)
      snapshot_.push_back(share_.count > 1 && !tensor.is_cpu() ? tensor.to(torch::kCPU) : tensor.clone());
  }
  snapshot_updates_ = updates_;
}

void AdamW::RestoreSnapshot() {
  if (snapshot_.empty()) return;
  const torch::NoGradGuard no_grad;
  size_t at = 0;
  for (const std::vector<torch::Tensor>* tensors : {&masters_, &exp_avg_, &exp_avg_sq_}) {
    for (const torch::Tensor& tensor : *tensors) tensor.copy_(snapshot_[at++]);
  }
  CopyMastersToParameters();
  updates_ = snapshot_updates_;
}

}  // namespace rlhf::learner
