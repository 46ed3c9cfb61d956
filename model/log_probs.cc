#include "model/log_probs.h"

#include <algorithm>
#include <cmath>

#include <ATen/Parallel.h>

#include "model/device.h"
#include "model/fused_ops.h"
#include "model/kernels/cpu_kernels.h"
#include "model/linear.h"

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// How hidden rows become a distribution.
struct Head {
  double temperature = 1, softcap = 0;
  bool fixed_order = false;
};

// float32 [rows, vocabulary], before the temperature.
torch::Tensor ChunkLogits(const torch::Tensor& hidden, const torch::Tensor& weight, const Head& head) {
  torch::Tensor logits =
      head.fixed_order || HasUnroundedProduct(hidden) ? UnroundedProduct(hidden, weight) : hidden.matmul(weight.t());
  if (head.softcap > 0) logits = Softcap(logits, head.softcap);
  return logits.to(torch::kFloat32);
}

// Per row: log Σ exp(logits / temperature), the target's log-probability, the entropy where asked for. On the CPU by
// the sampler's own kernel, so that equal logits give equal log-probabilities.
void Normalise(const torch::Tensor& logits_in, const torch::Tensor& targets, const Head& head, torch::Tensor log_sums,
               torch::Tensor log_probs, torch::Tensor entropy) {
  if (!IsFloatOnCpu(logits_in)) {
    const torch::Tensor logits = head.temperature == 1 ? logits_in : logits_in / head.temperature;
    const torch::Tensor log_sum = logits.logsumexp(-1);
    log_sums.copy_(log_sum);
    log_probs.copy_(logits.gather(1, targets.unsqueeze(1)).squeeze(1) - log_sum);
    if (!entropy.defined()) return;
    const torch::Tensor all = logits - log_sum.unsqueeze(1);
    entropy.copy_(-(all.exp() * all).sum(-1));
    return;
  }
  const torch::Tensor logits = logits_in.contiguous();
  const auto inverse = static_cast<float>(1.0 / head.temperature);
  const int64_t width = logits.size(1);
  const float* row = logits.data_ptr<float>();
  const int64_t* target = targets.data_ptr<int64_t>();
  float *sums = log_sums.data_ptr<float>(), *out = log_probs.data_ptr<float>(),
        *nats = entropy.defined() ? entropy.data_ptr<float>() : nullptr;
  at::parallel_for(0, logits.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = kernels::LogSumExp(row + i * width, width, inverse, nullptr, nullptr);
      out[i] = row[i * width + target[i]] * inverse - sums[i];
      if (nats != nullptr) nats[i] = kernels::Entropy(row + i * width, width, inverse, sums[i]);
    }
  });
}

// d log p[target] / d logits, row by row times grads: (onehot − softmax(logits / temperature)) / temperature. In the
// logits' place, unless a soft cap needs them afterwards.
torch::Tensor TowardsLogits(const torch::Tensor& logits, const torch::Tensor& log_sums, const torch::Tensor& targets,
                            const torch::Tensor& grads, const Head& head) {
  const bool in_place = head.softcap == 0;
  if (!IsFloatOnCpu(logits)) {
    torch::Tensor d = in_place ? logits : logits.clone();
    if (head.temperature != 1) d.div_(head.temperature);
    d.sub_(log_sums.unsqueeze(1)).exp_().neg_();
    d.scatter_add_(1, targets.unsqueeze(1), torch::ones({logits.size(0), 1}, d.options()));
    return d.mul_(grads.unsqueeze(1).div(head.temperature));
  }
  const torch::Tensor d = in_place ? logits : torch::empty_like(logits), upstream = grads.contiguous(),
                      wanted = targets.contiguous();
  const auto inverse = static_cast<float>(1.0 / head.temperature);
  const int64_t width = logits.size(1);
  const float *row = logits.data_ptr<float>(), *sums = log_sums.data_ptr<float>(), *grad = upstream.data_ptr<float>();
  const int64_t* target = wanted.data_ptr<int64_t>();
  float* const out = d.data_ptr<float>();
  at::parallel_for(0, logits.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels::LogSoftmaxBackward(row + i * width, width, inverse, sums[i], target[i], grad[i], out + i * width);
  });
  return d;
}

// The same where the entropy has a gradient too: of row H it is −p · (log p + H) / temperature, times to_entropy.
torch::Tensor TowardsLogits(const torch::Tensor& logits, const torch::Tensor& log_sums, const torch::Tensor& targets,
                            const torch::Tensor& to_log_probs, const torch::Tensor& entropy,
                            const torch::Tensor& to_entropy, const Head& head) {
  const bool in_place = head.softcap == 0;
  const auto inverse = static_cast<float>(1.0 / head.temperature);
  if (!IsFloatOnCpu(logits)) {
    torch::Tensor d = in_place ? logits : logits.clone();
    d.mul_(inverse).sub_(log_sums.unsqueeze(1));  // log p
    const torch::Tensor factor =
        (d + entropy.unsqueeze(1)).mul_(to_entropy.unsqueeze(1)).add_(to_log_probs.unsqueeze(1));
    d.exp_().mul_(factor).neg_();
    d.scatter_add_(1, targets.unsqueeze(1), to_log_probs.unsqueeze(1));
    return d.mul_(inverse);
  }
  const torch::Tensor d = in_place ? logits : torch::empty_like(logits), wanted = targets.contiguous(),
                      upstream = to_log_probs.contiguous(), upstream_entropy = to_entropy.contiguous();
  const int64_t width = logits.size(1);
  const float *row = logits.data_ptr<float>(), *sums = log_sums.data_ptr<float>(), *nats = entropy.data_ptr<float>(),
              *grad = upstream.data_ptr<float>(), *grad_entropy = upstream_entropy.data_ptr<float>();
  const int64_t* target = wanted.data_ptr<int64_t>();
  float* const out = d.data_ptr<float>();
  at::parallel_for(0, logits.size(0), 16, [&](int64_t begin, int64_t end) {
    std::vector<float> exps(static_cast<size_t>(width));
    for (int64_t i = begin; i < end; ++i) {
      const float* const x = row + i * width;
      float* const to = out + i * width;
      float highest = 0;
      kernels::LogSumExp(x, width, inverse, exps.data(), &highest);
      const float scale = std::exp(highest - sums[i]) * inverse, towards = grad[i], spread = grad_entropy[i];
      for (int64_t j = 0; j < width; ++j) {
        const float p = exps[static_cast<size_t>(j)];  // but for the scale; 0 of a logit of −inf
        to[j] = p > 0 ? -scale * p * (towards + spread * (x[j] * inverse - sums[i] + nats[i])) : 0;
      }
      to[target[i]] += towards * inverse;
    }
  });
  return d;
}

// log softmax(hidden · headᵀ / temperature)[target], a chunk of rows at a time. The first logits are kept for backward,
// a chunk or kKeptLogits of them; it computes the others again.
class ChunkedLogProbFunction : public torch::autograd::Function<ChunkedLogProbFunction> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& hidden, const torch::Tensor& weight,
                               const torch::Tensor& targets, const Head& head, bool with_entropy, int64_t chunk,
                               bool differentiable) {
    const int64_t rows = hidden.size(0);
    const auto options = hidden.options().dtype(torch::kFloat32);
    torch::Tensor log_probs = torch::empty({rows}, options), log_sums = torch::empty({rows}, options);
    torch::Tensor entropy = torch::empty({with_entropy ? rows : 0}, options);
    const torch::Tensor wanted = targets.contiguous();
    std::vector<torch::Tensor> kept;
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const auto part = [&](const torch::Tensor& all) { return all.narrow(0, begin, count); };
      const torch::Tensor logits = ChunkLogits(part(hidden), weight, head);
      Normalise(logits, part(wanted), head, part(log_sums), part(log_probs),
                with_entropy ? part(entropy) : torch::Tensor());
      if (differentiable && (begin + count) * weight.size(0) <= std::max(chunk * weight.size(0), kKeptLogits))
        kept.push_back(logits);
    }
    context->saved_data["logits"] = kept;
    context->save_for_backward({hidden, weight, targets, log_sums, entropy});
    context->set_materialize_grads(false);
    context->saved_data["temperature"] = head.temperature;
    context->saved_data["softcap"] = head.softcap;
    context->saved_data["fixed_order"] = head.fixed_order;
    context->saved_data["chunk"] = chunk;
    if (!with_entropy) context->mark_non_differentiable({entropy});
    return {log_probs, entropy};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &hidden = saved[0], &weight = saved[1], &targets = saved[2], &log_sums = saved[3],
                        &entropy = saved[4];
    const torch::Tensor to_log_probs = grads[0].defined() ? grads[0] : torch::zeros_like(log_sums);
    Head head;
    head.temperature = context->saved_data["temperature"].toDouble();
    head.softcap = context->saved_data["softcap"].toDouble();
    head.fixed_order = context->saved_data["fixed_order"].toBool();
    const int64_t chunk = context->saved_data["chunk"].toInt();
    // Given up here: what was kept and is used is freed, and a second backward computes it again.
    std::vector<torch::Tensor> kept;
    if (const auto found = context->saved_data.find("logits"); found != context->saved_data.end()) {
      kept = found->second.toTensorVector();
      context->saved_data.erase("logits");
    }
    const bool to_weight = context->needs_input_grad(1);
    torch::Tensor grad_hidden = torch::empty_like(hidden);
    torch::Tensor grad_weight;
    if (to_weight) grad_weight = torch::zeros(weight.sizes(), weight.options().dtype(torch::kFloat32));
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const int64_t count = std::min(chunk, hidden.size(0) - begin);
      const torch::Tensor part = hidden.narrow(0, begin, count);
      const auto nth = static_cast<size_t>(begin / chunk);
      const torch::Tensor logits = nth < kept.size() ? std::move(kept[nth]) : ChunkLogits(part, weight, head);
      const auto rows = [&](const torch::Tensor& all) { return all.narrow(0, begin, count); };
      const torch::Tensor d = grads[1].defined()
                                  ? TowardsLogits(logits, rows(log_sums), rows(targets), rows(to_log_probs),
                                                  rows(entropy), rows(grads[1]), head)
                                  : TowardsLogits(logits, rows(log_sums), rows(targets), rows(to_log_probs), head);
      if (head.softcap > 0) d.mul_(1 - (logits / head.softcap).square());
      const torch::Tensor d_cast = d.to(weight.scalar_type());
      grad_hidden.narrow(0, begin, count)
          .copy_(head.fixed_order ? MatmulFixedOrder(d_cast, weight) : d_cast.matmul(weight));
      if (!to_weight) continue;
      if (head.fixed_order) {
        MatmulFixedOrderInto(d_cast.t(), part, /*add=*/true, grad_weight);
      } else if (weight.scalar_type() == torch::kFloat32) {
        grad_weight.addmm_(d_cast.t(), part);
      } else {
        grad_weight.add_(d_cast.t().matmul(part));
      }
    }
    return {grad_hidden,     to_weight ? grad_weight.to(weight.scalar_type()) : torch::Tensor(),
            torch::Tensor(), torch::Tensor(),
            torch::Tensor(), torch::Tensor(),
            torch::Tensor()};
  }
};

}  // namespace

LogProbs ChunkedLogProbs(const Transformer& model, const torch::Tensor& hidden_rows, const torch::Tensor& targets,
                         double temperature, bool with_entropy, int64_t chunk_rows) {
  TORCH_CHECK(model.head() == HeadKind::kLm, "log-probabilities need a language-model head");
  Head head;
  head.temperature = temperature;
  head.softcap = model.config().logit_softcap;
  head.fixed_order = model.deterministic() || ProductsAreOurs(hidden_rows);
  const bool differentiable =
      torch::GradMode::is_enabled() && (hidden_rows.requires_grad() || model.head_weight().requires_grad());
  const variable_list out = ChunkedLogProbFunction::apply(hidden_rows, model.head_weight(), targets, head, with_entropy,
                                                          chunk_rows, differentiable);
  LogProbs result;
  result.log_probs = out[0];
  if (with_entropy) result.entropy = out[1];
  return result;
}

LogProbs ResponseLogProbs(const Transformer& model, const PackedBatch& batch, const ResponseIndex& index,
                          double temperature, bool with_entropy) {
  return ChunkedLogProbs(model, model.Hidden(batch, index.rows), index.targets, temperature, with_entropy);
}

ResponseIndex IndexResponses(const PackedBatch& batch, const std::vector<int64_t>& begin) {
  std::vector<int64_t> rows, positions;
  ResponseIndex index;
  int64_t first = 0;
  for (size_t i = 0; i < batch.lengths.size(); ++i) {
    TORCH_CHECK(begin[i] >= 1 && begin[i] <= batch.lengths[i], "a response begins at ", begin[i], " in a sequence of ",
                batch.lengths[i]);
    for (int64_t p = begin[i]; p < batch.lengths[i]; ++p) {
      rows.push_back(first + p - 1);
      positions.push_back(first + p);
    }
    index.counts.push_back(batch.lengths[i] - begin[i]);
    first += batch.lengths[i];
  }
  const torch::Device device = batch.token_ids.device();
  index.rows = ToDevice(rows, device);
  index.targets = batch.token_ids.index_select(0, ToDevice(positions, device));
  return index;
}

}  // namespace rlhf::model
