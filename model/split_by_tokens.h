// How many sequences go through a model at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rlhf::model {

// Ranges [begin, end) of sequences of these lengths, in order: each of at most max_tokens, or of a single longer one.
inline std::vector<std::pair<size_t, size_t>> SplitByTokens(const std::vector<int64_t>& lengths, int64_t max_tokens) {
  std::vector<std::pair<size_t, size_t>> ranges;
  int64_t tokens = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (ranges.empty() || tokens + lengths[i] > max_tokens) {
      ranges.emplace_back(i, i);
      tokens = 0;
    }
    ranges.back().second = i + 1;
    tokens += lengths[i];
  }
  return ranges;
}

inline std::vector<std::pair<size_t, size_t>> SplitByTokens(const std::vector<std::vector<int32_t>>& sequences,
                                                            int64_t max_tokens) {
  std::vector<int64_t> lengths;
  for (const std::vector<int32_t>& sequence : sequences) lengths.push_back(static_cast<int64_t>(sequence.size()));
  return SplitByTokens(lengths, max_tokens);
}

}  // namespace rlhf::model
