#include "learner/gradient_buckets.h"

#include <algorithm>
#include <utility>

namespace rlhf::learner {

struct GradientBuckets::State {
  struct Sums {
    torch::Tensor flat;
    size_t missing = 0;  // parameters whose last gradient has not come yet
  };
  std::vector<torch::Tensor> parameters;
  std::vector<unsigned> hooks;
  std::vector<torch::Tensor> gradients;  // views, by parameter
  std::vector<torch::Tensor> own;        // views of the share's segments; empty: no share
  std::vector<size_t> bucket_of;
  std::vector<Bucket> layout;
  std::vector<Sums> buckets;
  bool shared = false;
  std::vector<bool> arrived;

  // Of the backward that runs now; hooks run inside it, one at a time.
  bool last = false;
  Collective* collective = nullptr;
  size_t started = 0;
  std::vector<std::unique_ptr<Collective::Pending>> pending;
  absl::Status error;

  void Arrived(size_t i, const torch::Tensor& gradient) {
    const torch::NoGradGuard no_grad;
    gradients[i].add_(gradient);
    if (!last || arrived[i]) return;
    arrived[i] = true;
    --buckets[bucket_of[i]].missing;
    StartReady();
  }
  // In bucket order only: every rank must start the same sums in the same order.
  void StartReady() {
    while (started < buckets.size() && buckets[started].missing == 0) Start();
  }
  void Start() {
    torch::Tensor& flat = buckets[started++].flat;
    if (collective->world_size() == 1 || !error.ok()) return;
    auto sum = shared ? collective->StartReduceScatterSum(flat) : collective->StartAllReduceSum(flat);
    if (sum.ok()) {
      pending.push_back(*std::move(sum));
    } else {
      error = sum.status();
    }
  }
  void Prepare(bool is_last, Collective* c) {
    last = is_last;
    collective = c;
    if (!last) return;
    started = 0;
    std::fill(arrived.begin(), arrived.end(), false);
    for (size_t b = 0; b < buckets.size(); ++b) buckets[b].missing = layout[b].parameters.size();
  }
  // Zeroed buckets, each of a size that divides into so many shares, and the views into them.
  void Allocate(int shares) {
    buckets.clear();
    for (size_t b = 0; b < layout.size(); ++b) {
      const torch::Tensor& first = parameters[layout[b].parameters.front().parameter];
      Sums& sums = buckets.emplace_back();
      sums.flat = torch::zeros({ShareSize(layout[b], shares) * shares},
                               torch::TensorOptions().dtype(torch::kFloat32).device(first.device()));
      for (const Segment& segment : layout[b].parameters) {
        bucket_of[segment.parameter] = b;
        gradients[segment.parameter] =
            sums.flat.narrow(0, segment.at, segment.size).view(parameters[segment.parameter].sizes());
      }
    }
  }
};

GradientBuckets::GradientBuckets(std::vector<torch::Tensor> parameters, int64_t bucket_bytes)
    : state_(std::make_shared<State>()) {
  State& s = *state_;
  s.parameters = std::move(parameters);
  const size_t n = s.parameters.size();
  s.gradients.resize(n);
  s.bucket_of.resize(n);
  s.arrived.assign(n, false);
  s.layout = BucketsOf(s.parameters, bucket_bytes);
  s.Allocate(1);
  for (size_t i = 0; i < n; ++i) {
    s.hooks.push_back(
        s.parameters[i].register_hook([weak = std::weak_ptr<State>(state_), i](const torch::Tensor& gradient) {
          if (const auto state = weak.lock()) state->Arrived(i, gradient);
        }));
  }
}

GradientBuckets::~GradientBuckets() {
  for (size_t i = 0; i < state_->hooks.size(); ++i) state_->parameters[i].remove_hook(state_->hooks[i]);
}

void GradientBuckets::SetShare(const Share& share) {
  State& s = *state_;
  s.shared = true;
  s.Allocate(share.count);
  s.own.clear();
  for (size_t b = 0; b < s.layout.size(); ++b) {
    for (const Segment& segment : SegmentsOf(s.layout[b], share))
      s.own.push_back(s.buckets[b].flat.narrow(0, segment.at, segment.size));
  }
}

void GradientBuckets::Begin() {
  for (State::Sums& bucket : state_->buckets) bucket.flat.zero_();
  state_->pending.clear();
  state_->error = absl::OkStatus();
}

absl::Status GradientBuckets::Backward(const torch::Tensor& loss, bool last, Collective* collective) {
  state_->Prepare(last, collective);
  loss.backward();
  for (torch::Tensor& parameter : state_->parameters) parameter.mutable_grad().reset();  // the buckets hold the sums
  if (last) {
    while (state_->started < state_->buckets.size()) state_->Start();
  }
  return state_->error;
}

absl::Status GradientBuckets::ReduceOnly(Collective* collective) {
  state_->Prepare(true, collective);
  while (state_->started < state_->buckets.size()) state_->Start();
  return state_->error;
}

absl::Status GradientBuckets::Wait() {
  absl::Status status = state_->error;
  for (const auto& pending : state_->pending) {
    const absl::Status waited = pending->Wait();
    if (status.ok()) status = waited;
  }
  state_->pending.clear();
  return status;
}

const std::vector<torch::Tensor>& GradientBuckets::gradients() const {
  return state_->shared ? state_->own : state_->gradients;
}

}  // namespace rlhf::learner
