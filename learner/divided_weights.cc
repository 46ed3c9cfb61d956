#include "learner/divided_weights.h"

#include <utility>

namespace rlhf::learner {
namespace {

// What a tensor and all that alias it lie in: the tensors stay, their memory comes and goes.
void SetBytes(const torch::Tensor& tensor, size_t bytes) {
  c10::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  if (storage->nbytes() == bytes) return;
  // An allocator takes from the thread's device, which need not be the tensor's.
  c10::OptionalDeviceGuard guard;
  if (tensor.device().has_index()) guard.reset_device(tensor.device());
  storage->set_data_ptr_noswap(storage->allocator()->allocate(bytes));
  storage->set_nbytes(bytes);
}

}  // namespace

DividedWeights::DividedWeights(model::Transformer* model, std::vector<Bucket> layout, const AdamW* optimizer,
                               GradientBuckets* gradients)
    : model_(model), layout_(std::move(layout)), optimizer_(optimizer), gradients_(gradients) {
  for (size_t b = 0; b < layout_.size(); ++b) {
    if (layout_[b].layer < 0) continue;
    const auto layer = static_cast<size_t>(layout_[b].layer);
    if (buckets_of_.size() <= layer) buckets_of_.resize(layer + 1);
    buckets_of_[layer].push_back(b);
  }
}

void DividedWeights::Divide() {
  if (divided_) return;
  divided_ = true;
  model_->SetLayerWeights(this);
  for (size_t layer = 0; layer < buckets_of_.size(); ++layer) Release(layer);
}

void DividedWeights::Begin(Collective* collective) {
  collective_ = collective;
  status_ = absl::OkStatus();
}

void DividedWeights::Allocate() {
  if (!divided_) return;
  divided_ = false;
  model_->SetLayerWeights(nullptr);
  for (const Bucket& bucket : layout_) {
    for (const Segment& segment : bucket.parameters) {
      const torch::Tensor& parameter = model_->named_parameters()[segment.parameter].second;
      SetBytes(parameter, parameter.nbytes());
    }
  }
}

absl::Status DividedWeights::MakeWhole(Collective* collective) {
  if (!divided_) return absl::OkStatus();
  Begin(collective);
  for (size_t layer = 0; layer < buckets_of_.size(); ++layer) Bring(layer, /*backward=*/false);
  if (status_.ok()) Allocate();
  return status_;
}

void DividedWeights::Fill(size_t bucket) {
  const torch::NoGradGuard no_grad;
  torch::Tensor all;
  if (status_.ok()) {
    absl::StatusOr<torch::Tensor> gathered = optimizer_->Gather(bucket, collective_);
    if (gathered.ok()) all = *std::move(gathered);
    status_ = gathered.status();
  }
  for (const Segment& segment : layout_[bucket].parameters) {
    // Without the parameter's count of versions: autograd knows the values as what they were.
    const torch::Tensor data = model_->named_parameters()[segment.parameter].second.variable_data();
    SetBytes(data, data.nbytes());
    if (status_.ok()) {
      data.view({-1}).copy_(all.narrow(0, segment.at, segment.size));
    } else {
      data.zero_();
    }
  }
}

void DividedWeights::Bring(size_t layer, bool backward) {
  if (!divided_) return;
  // What lies behind this layer has its gradients; at this place on all ranks, whatever order autograd goes in.
  if (backward) gradients_->StartBefore(buckets_of_[layer].front());
  for (const size_t bucket : buckets_of_[layer]) Fill(bucket);
}

void DividedWeights::Release(size_t layer) {
  if (!divided_) return;
  for (const size_t bucket : buckets_of_[layer]) {
    for (const Segment& segment : layout_[bucket].parameters)
      SetBytes(model_->named_parameters()[segment.parameter].second, 0);
  }
}

void DividedWeights::PassForward() {
  if (!divided_) return;
  for (size_t layer = 0; layer < buckets_of_.size(); ++layer) {
    Bring(layer, /*backward=*/false);
    Release(layer);
  }
}

void DividedWeights::PassBackward() {
  if (!divided_) return;
  for (size_t layer = buckets_of_.size(); layer-- > 0;) {
    Bring(layer, /*backward=*/true);
    Release(layer);
  }
}

}  // namespace rlhf::learner
