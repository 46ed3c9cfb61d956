#include "learner/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

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
  for (const auto& [name, parameter] : parameters_) {
    masters_.push_back(parameter.scalar_type() == torch::kFloat32 ? parameter.detach()
                                                                  : parameter.detach().to(torch::kFloat32));
    exp_avg_.push_back(torch::zeros_like(masters_.back()));
    exp_avg_sq_.push_back(torch::zeros_like(masters_.back()));
  }
}

double AdamW::Norm(const std::vector<torch::Tensor>& gradients) {
  const torch::NoGradGuard no_grad;
  if (!gradients.empty() && gradients.front().is_cuda()) {  // without a wait for each
    std::vector<torch::Tensor> norms;
    for (const torch::Tensor& gradient : gradients) norms.push_back(gradient.norm(2, torch::kFloat64));
    return torch::stack(norms).norm().item<double>();
  }
  double squares = 0;
  for (const torch::Tensor& gradient : gradients) squares += gradient.to(torch::kFloat64).square().sum().item<double>();
  return std::sqrt(squares);
}

void AdamW::Step(const std::vector<torch::Tensor>& gradients, double norm) {
  const torch::NoGradGuard no_grad;
  const double scale = spec_.max_grad_norm() > 0 ? std::min(1.0, spec_.max_grad_norm() / (norm + 1e-6)) : 1.0;
  const double rate = learning_rate();
  ++updates_;
  for (const bool decays : {true, false}) {
    std::vector<torch::Tensor> parameters, grads, averages, squares, steps;
    for (size_t i = 0; i < masters_.size(); ++i) {
      if ((masters_[i].dim() > 1) != decays) continue;
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
  for (size_t i = 0; i < masters_.size(); ++i) {
    if (parameters_[i].second.scalar_type() != torch::kFloat32) parameters_[i].second.detach().copy_(masters_[i]);
  }
}

AdamW::NamedTensors AdamW::state() const {
  NamedTensors out;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const std::string& name = parameters_[i].first;
    out.emplace_back("exp_avg/" + name, exp_avg_[i]);
    out.emplace_back("exp_avg_sq/" + name, exp_avg_sq_[i]);
    if (parameters_[i].second.scalar_type() != torch::kFloat32) out.emplace_back("master/" + name, masters_[i]);
  }
  return out;
}

void AdamW::TakeSnapshot() {
  const torch::NoGradGuard no_grad;
  snapshot_.clear();
  for (const std::vector<torch::Tensor>* tensors : {&masters_, &exp_avg_, &exp_avg_sq_}) {
    for (const torch::Tensor& tensor : *tensors) snapshot_.push_back(tensor.clone());
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
  for (size_t i = 0; i < masters_.size(); ++i) {
    if (parameters_[i].second.scalar_type() != torch::kFloat32) parameters_[i].second.detach().copy_(masters_[i]);
  }
  updates_ = snapshot_updates_;
}

}  // namespace rlhf::learner
