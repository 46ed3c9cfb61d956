#include "learner/trainable.h"

#include <utility>

#include "common/failpoint.h"
#include "common/status_util.h"

namespace rlhf::learner {
namespace {

std::vector<torch::Tensor> LeavesOf(const model::Transformer& model) {
  std::vector<torch::Tensor> leaves;
  for (const auto& [name, parameter] : model.named_parameters()) {
    torch::Tensor leaf = parameter;
    leaf.requires_grad_(true);
    leaves.push_back(leaf);
  }
  return leaves;
}

}  // namespace

Trainable::Trainable(std::unique_ptr<model::Transformer> model, const v1::OptimizerSpec& spec, int64_t total_updates)
    : model_(std::move(model)),
      buckets_(LeavesOf(*model_)),
      optimizer_(model_->named_parameters(), spec, total_updates) {}

absl::StatusOr<double> Trainable::Accumulate(const std::vector<LossTerm>& terms, Collective* collective) {
  buckets_.Begin();
  RLHF_FAILPOINT("learner/before_allreduce");
  if (terms.empty()) {
    RLHF_RETURN_IF_ERROR(buckets_.ReduceOnly(collective));
    return 0.0;
  }
  double total = 0;
  for (size_t i = 0; i < terms.size(); ++i) {
    const torch::Tensor loss = terms[i]();
    total += loss.item<double>();
    RLHF_RETURN_IF_ERROR(buckets_.Backward(loss, i + 1 == terms.size(), collective));
  }
  return total;
}

absl::StatusOr<double> Trainable::FinishSums() {
  RLHF_FAILPOINT("learner/inside_allreduce");
  RLHF_RETURN_IF_ERROR(buckets_.Wait());
  return AdamW::Norm(buckets_.gradients());
}

void Trainable::AppendState(const std::string& prefix, NamedTensors* out) const {
  for (const auto& [name, parameter] : model_->named_parameters())
    out->emplace_back(prefix + "/" + name, parameter.detach());
  for (const auto& [name, tensor] : optimizer_.state()) out->emplace_back(prefix + "_optimizer/" + name, tensor);
}

torch::Dtype DtypeOf(v1::Precision precision) {
  return precision == v1::BFLOAT16 ? torch::kBFloat16 : torch::kFloat32;
}

absl::Status BroadcastState(const NamedTensors& tensors, std::vector<double>* numbers, torch::Device device, int root,
                            Collective* collective) {
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : tensors) RLHF_RETURN_IF_ERROR(collective->Broadcast(tensor, root));
  torch::Tensor packed = torch::tensor(*numbers, torch::kFloat64).to(device);
  RLHF_RETURN_IF_ERROR(collective->Broadcast(packed, root));
  packed = packed.to(torch::kCPU);
  for (size_t i = 0; i < numbers->size(); ++i) (*numbers)[i] = packed.data_ptr<double>()[i];
  return absl::OkStatus();
}

absl::Status SumOverRanks(std::vector<double>* numbers, torch::Device device, Collective* collective) {
  torch::Tensor packed = torch::tensor(*numbers, torch::kFloat64).to(device);
  RLHF_RETURN_IF_ERROR(collective->AllReduceSum(packed));
  packed = packed.to(torch::kCPU);
  for (size_t i = 0; i < numbers->size(); ++i) (*numbers)[i] = packed.data_ptr<double>()[i];
  return absl::OkStatus();
}

}  // namespace rlhf::learner
