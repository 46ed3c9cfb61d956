#include "learner/gradient_buckets.h"

#include <algorithm>
#include <deque>
#include <utility>

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace rlhf::learner {

struct GradientBuckets::State {
  struct Sums {
    torch::Tensor flat;  // all of the bucket; where each backward is reduced, only while one fills and reduces it
    torch::Tensor own;   // where each is reduced: this rank's share of it, over ranks and backwards
    size_t missing = 0;  // parameters whose gradient of this backward has not come yet
  };
  struct InFlight {
    std::unique_ptr<Collective::Pending> sum;
    size_t bucket;
    torch::Tensor flat;  // what is summed; the bucket's next one may fill meanwhile
  };
  std::vector<torch::Tensor> parameters;
  std::vector<torch::Tensor> views;  // of what gradients() says
  std::vector<Segment> place;        // by parameter, in its bucket
  std::vector<size_t> bucket_of;
  std::vector<Bucket> layout;
  std::vector<Sums> buckets;
  Share share;
  bool shared = false, allocated = false;
  std::vector<bool> arrived;

  // Of the backward that runs now; hooks run inside it, one at a time.
  bool reduces = false;
  bool when_told = false;
  Collective* collective = nullptr;
  size_t started = 0;
  std::deque<InFlight> in_flight;
  absl::Status error;

  bool scattered() const { return share.count > 1; }
  torch::Tensor Zeros(int64_t size) const {
    return torch::zeros({size}, torch::TensorOptions().dtype(torch::kFloat32).device(parameters.front().device()));
  }
  torch::Tensor& Flat(size_t b) {
    torch::Tensor& flat = buckets[b].flat;
    if (!flat.defined()) flat = Zeros(ShareSize(layout[b], share.count) * share.count);
    return flat;
  }
  torch::Tensor Sum(size_t i) {
    return Flat(bucket_of[i]).narrow(0, place[i].at, place[i].size).view(parameters[i].sizes());
  }

  // The parameter's gradient is in .grad, and is not needed there.
  void Arrived(size_t i) {
    const torch::NoGradGuard no_grad;
    torch::Tensor& gradient = parameters[i].mutable_grad();
    if (gradient.defined()) Sum(i).add_(gradient);
    gradient.reset();
    if (!reduces || arrived[i]) return;
    arrived[i] = true;
    --buckets[bucket_of[i]].missing;
    TORCH_CHECK(!when_told || started <= bucket_of[i], "a gradient came after the sum of its bucket was started");
    if (when_told) return;
    // In bucket order only: every rank must start the same sums in the same order.
    while (started < buckets.size() && buckets[started].missing == 0) Start();
  }
  void Start() {
    const size_t b = started++;
    if (collective->world_size() == 1 || !error.ok()) return;
    while (scattered() && in_flight.size() >= kBucketsInFlight && error.ok()) FinishOldest();
    if (!error.ok()) return;
    auto sum = shared ? collective->StartReduceScatterSum(Flat(b)) : collective->StartAllReduceSum(Flat(b));
    if (sum.ok()) {
      in_flight.push_back({*std::move(sum), b, Flat(b)});
      if (scattered()) buckets[b].flat.reset();
    } else {
      error = sum.status();
    }
  }
  void FinishOldest() {
    const torch::NoGradGuard no_grad;
    const InFlight oldest = std::move(in_flight.front());
    in_flight.pop_front();
    const absl::Status waited = oldest.sum->Wait();
    if (error.ok()) error = waited;
    if (!waited.ok() || !scattered()) return;
    torch::Tensor& own = buckets[oldest.bucket].own;
    own.add_(oldest.flat.narrow(0, share.index * own.numel(), own.numel()));
  }
  void Prepare(bool reduces_now, Collective* c) {
    reduces = reduces_now;
    collective = c;
    if (!reduces) return;
    started = 0;
    std::fill(arrived.begin(), arrived.end(), false);
    for (size_t b = 0; b < buckets.size(); ++b) buckets[b].missing = layout[b].parameters.size();
  }
  absl::Status StartRest() {
    while (started < buckets.size()) Start();
    return error;
  }
  // Zeroed sums of so much as is held between backwards, and the views into them.
  void Allocate() {
    allocated = true;
    in_flight.clear();
    buckets.assign(layout.size(), {});
    views.assign(shared ? 0 : parameters.size(), torch::Tensor());
    for (size_t b = 0; b < layout.size(); ++b) {
      const int64_t size = ShareSize(layout[b], share.count);
      const torch::Tensor held = scattered() ? buckets[b].own = Zeros(size) : Flat(b);
      if (!shared) {
        for (const Segment& segment : layout[b].parameters) views[segment.parameter] = Sum(segment.parameter);
      } else {
        for (const Segment& segment : SegmentsOf(layout[b], share))
          views.push_back(held.narrow(0, segment.at - share.index * size, segment.size));
      }
    }
  }
};

GradientBuckets::GradientBuckets(std::vector<torch::Tensor> parameters, const BucketSizes& sizes)
    : GradientBuckets(parameters, BucketsOf(parameters, sizes)) {}

GradientBuckets::GradientBuckets(std::vector<torch::Tensor> parameters, std::vector<Bucket> layout)
    : state_(std::make_shared<State>()) {
  struct Hook final : torch::autograd::PostAccumulateGradHook {
    Hook(std::weak_ptr<State> of, size_t at) : state(std::move(of)), i(at) {}
    void operator()(const torch::autograd::Variable&) override {
      if (const auto live = state.lock()) live->Arrived(i);
    }
    const std::weak_ptr<State> state;
    const size_t i;
  };
  State& s = *state_;
  s.parameters = std::move(parameters);
  const size_t n = s.parameters.size();
  s.place.resize(n);
  s.bucket_of.resize(n);
  s.arrived.assign(n, false);
  s.layout = std::move(layout);
  for (size_t b = 0; b < s.layout.size(); ++b) {
    for (const Segment& segment : s.layout[b].parameters) {
      s.place[segment.parameter] = segment;
      s.bucket_of[segment.parameter] = b;
    }
  }
  for (size_t i = 0; i < n; ++i)
    torch::autograd::impl::set_post_acc_grad_hooks(s.parameters[i], std::make_unique<Hook>(state_, i));
}

GradientBuckets::~GradientBuckets() {
  for (const torch::Tensor& parameter : state_->parameters)
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
}

void GradientBuckets::SetShare(const Share& share) {
  state_->shared = true;
  state_->share = share;
  state_->Allocate();
}

bool GradientBuckets::reduces_each() const {
  return state_->scattered();
}

void GradientBuckets::Begin() {
  State& s = *state_;
  if (!s.allocated) s.Allocate();
  s.in_flight.clear();
  for (State::Sums& bucket : s.buckets) {
    if (s.scattered()) {
      bucket.flat.reset();
      bucket.own.zero_();
    } else {
      bucket.flat.zero_();
    }
  }
  s.error = absl::OkStatus();
}

absl::Status GradientBuckets::Backward(const torch::Tensor& loss, bool last, Collective* collective) {
  state_->Prepare(last || reduces_each(), collective);
  loss.backward();
  return state_->reduces ? state_->StartRest() : state_->error;
}

void GradientBuckets::StartOnlyWhenTold() {
  state_->when_told = true;
}

void GradientBuckets::StartBefore(size_t bucket) {
  while (state_->reduces && state_->started < bucket) state_->Start();
}

absl::Status GradientBuckets::ReduceOnly(Collective* collective, const std::function<void()>& during) {
  state_->Prepare(true, collective);
  if (during) during();
  return state_->StartRest();
}

absl::Status GradientBuckets::Wait() {
  State& s = *state_;
  while (!s.in_flight.empty()) s.FinishOldest();
  return s.error;
}

const std::vector<torch::Tensor>& GradientBuckets::gradients() const {
  return state_->views;
}

}  // namespace rlhf::learner
