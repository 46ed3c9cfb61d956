// Log-probabilities of given tokens, without materialising float32 [tokens, vocabulary].
#pragma once

#include "common/kept_logits.h"
#include "model/libtorch.h"
#include "model/transformer.h"

namespace rlhf::model {

struct LogProbs {
  torch::Tensor log_probs;  // float32 [N], natural log of softmax(logits / temperature) at the target
  torch::Tensor entropy;    // float32 [N], nats; undefined unless asked for
};

// hidden_rows [N, hidden] predict targets int64 [N]. Both results have gradients. Chunked over rows in one autograd
// function that keeps the logits of a chunk, or kKeptLogits of them, and computes the others again in backward.
LogProbs ChunkedLogProbs(const Transformer& model, const torch::Tensor& hidden_rows, const torch::Tensor& targets,
                         double temperature = 1.0, bool with_entropy = false, int64_t chunk_rows = kLogitsRows);

// Rows (into [T]) that predict the tokens [begin, end) of each sequence, and those tokens. begin ≥ 1.
struct ResponseIndex {
  torch::Tensor rows;           // int64 [N]: position of the predicting hidden state
  torch::Tensor targets;        // int64 [N]
  std::vector<int64_t> counts;  // response tokens per sequence
};
ResponseIndex IndexResponses(const PackedBatch& batch, const std::vector<int64_t>& begin);

// Of the index' tokens: a forward pass, and ChunkedLogProbs of the rows that predict them.
LogProbs ResponseLogProbs(const Transformer& model, const PackedBatch& batch, const ResponseIndex& index,
                          double temperature = 1.0, bool with_entropy = false);

}  // namespace rlhf::model
