#include "model/log_probs.h"

#include <algorithm>

namespace rlhf::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// log softmax(hidden · headᵀ / temperature)[target], a chunk of rows at a time; backward computes each chunk's logits
// again.
class ChunkedLogProbFunction : public torch::autograd::Function<ChunkedLogProbFunction> {
 public:
  static variable_list forward(AutogradContext* context, const torch::Tensor& hidden, const torch::Tensor& head,
                               const torch::Tensor& targets, double temperature, bool with_entropy, int64_t chunk) {
    const int64_t rows = hidden.size(0);
    torch::Tensor log_probs = torch::empty({rows}, hidden.options().dtype(torch::kFloat32));
    torch::Tensor log_sums = torch::empty({rows}, log_probs.options());
    torch::Tensor entropy =
        with_entropy ? torch::empty({rows}, log_probs.options()) : torch::empty({0}, log_probs.options());
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const torch::Tensor logits = ChunkLogits(hidden.narrow(0, begin, count), head, temperature);
      const torch::Tensor log_sum = logits.logsumexp(-1);
      log_sums.narrow(0, begin, count).copy_(log_sum);
      log_probs.narrow(0, begin, count)
          .copy_(logits.gather(1, targets.narrow(0, begin, count).unsqueeze(1)).squeeze(1) - log_sum);
      if (with_entropy) {
        const torch::Tensor all = logits - log_sum.unsqueeze(1);
        entropy.narrow(0, begin, count).copy_(-(all.exp() * all).sum(-1));
      }
    }
    context->save_for_backward({hidden, head, targets, log_sums});
    context->saved_data["temperature"] = temperature;
    context->saved_data["chunk"] = chunk;
    context->mark_non_differentiable({entropy});
    return {log_probs, entropy};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &hidden = saved[0], &head = saved[1], &targets = saved[2], &log_sums = saved[3];
    const double temperature = context->saved_data["temperature"].toDouble();
    const int64_t chunk = context->saved_data["chunk"].toInt();
    const torch::Tensor& grad = grads[0];
    torch::Tensor grad_hidden = torch::empty_like(hidden);
    torch::Tensor grad_head = torch::zeros(head.sizes(), head.options().dtype(torch::kFloat32));
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      const int64_t count = std::min(chunk, hidden.size(0) - begin);
      const torch::Tensor part = hidden.narrow(0, begin, count);
      // d log p[target] / d logits = onehot − softmax
      torch::Tensor d =
          ChunkLogits(part, head, temperature).sub_(log_sums.narrow(0, begin, count).unsqueeze(1)).exp_().neg_();
      const torch::Tensor index = targets.narrow(0, begin, count).unsqueeze(1);
      d.scatter_add_(1, index, torch::ones({count, 1}, d.options()));
      d.mul_(grad.narrow(0, begin, count).unsqueeze(1).div(temperature));
      const torch::Tensor d_cast = d.to(head.scalar_type());
      grad_hidden.narrow(0, begin, count).copy_(d_cast.matmul(head));
      if (head.scalar_type() == torch::kFloat32) {
        grad_head.addmm_(d_cast.t(), part);
      } else {
        grad_head.add_(d_cast.t().matmul(part));
      }
    }
    return {grad_hidden,    grad_head.to(head.scalar_type()), torch::Tensor(), torch::Tensor(), torch::Tensor(),
            torch::Tensor()};
  }

 private:
  static torch::Tensor ChunkLogits(const torch::Tensor& hidden, const torch::Tensor& head, double temperature) {
    torch::Tensor logits = hidden.matmul(head.t()).to(torch::kFloat32);
    return temperature == 1.0 ? logits : logits.div_(temperature);
  }
};

}  // namespace

LogProbs ChunkedLogProbs(const Transformer& model, const torch::Tensor& hidden_rows, const torch::Tensor& targets,
                         double temperature, bool with_entropy, int64_t chunk_rows) {
  TORCH_CHECK(model.head() == HeadKind::kLm, "log-probabilities need a language-model head");
  const variable_list out =
      ChunkedLogProbFunction::apply(hidden_rows, model.head_weight(), targets, temperature, with_entropy, chunk_rows);
  LogProbs result;
  result.log_probs = out[0];
  if (with_entropy) result.entropy = out[1];
  return result;
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
  index.rows = torch::tensor(rows, torch::kInt64).to(device);
  index.targets = batch.token_ids.index_select(0, torch::tensor(positions, torch::kInt64).to(device));
  return index;
}

}  // namespace rlhf::model
