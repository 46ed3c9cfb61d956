#include "artifact/tokenizer/bpe_trainer.h"

#include <algorithm>
#include <queue>

#include "absl/container/flat_hash_map.h"

namespace rlhf::artifact {
namespace {

using Pair = std::pair<int32_t, int32_t>;

// A pair with the words where it stood when it was counted.
struct Candidate {
  int64_t count;
  Pair pair;
  std::vector<uint32_t> words;
};
struct Worse {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.count != b.count ? a.count < b.count : a.pair > b.pair;
  }
};
using Counts = absl::flat_hash_map<Pair, int64_t>;
using Where = absl::flat_hash_map<Pair, std::vector<uint32_t>>;

// Merges a pair in a word and tells how often each neighbouring pair comes or goes.
template <typename Change>
void MergeInWord(const Pair& pair, int32_t merged, std::vector<int32_t>* symbols, Change change) {
  std::vector<int32_t>& s = *symbols;
  size_t out = 0;
  for (size_t in = 0; in < s.size();) {
    if (in + 1 >= s.size() || s[in] != pair.first || s[in + 1] != pair.second) {
      s[out++] = s[in++];
      continue;
    }
    if (out > 0) {
      change({s[out - 1], pair.first}, -1);
      change({s[out - 1], merged}, 1);
    }
    if (in + 2 < s.size()) {
      change({pair.second, s[in + 2]}, -1);
      change({merged, s[in + 2]}, 1);
    }
    s[out++] = merged;
    in += 2;
  }
  s.resize(out);
}

void Note(const Pair& pair, uint32_t word, Where* where) {
  std::vector<uint32_t>& words = (*where)[pair];
  if (words.empty() || words.back() != word) words.push_back(word);
}

}  // namespace

TrainedBpe TrainBpe(std::vector<std::string> tokens, std::vector<TrainingWord> words, size_t vocab_size) {
  TrainedBpe out;
  absl::flat_hash_map<std::string, int32_t> ids;
  for (size_t id = 0; id < tokens.size(); ++id) ids[tokens[id]] = static_cast<int32_t>(id);
  Counts counts;
  Where where;
  for (uint32_t w = 0; w < words.size(); ++w) {
    for (size_t i = 0; i + 1 < words[w].symbols.size(); ++i) {
      const Pair pair{words[w].symbols[i], words[w].symbols[i + 1]};
      counts[pair] += words[w].count;
      Note(pair, w, &where);
    }
  }
  std::priority_queue<Candidate, std::vector<Candidate>, Worse> heap;
  const auto push_all = [&] {
    for (auto& [pair, at] : where) {
      if (const int64_t count = counts[pair]; count > 0) heap.push({count, pair, std::move(at)});
    }
    where.clear();
  };
  push_all();
  while (tokens.size() < vocab_size && !heap.empty()) {
    // priority_queue gives no way to move out of it but this.
    Candidate best = std::move(const_cast<Candidate&>(heap.top()));
    heap.pop();
    if (const int64_t now = counts[best.pair]; now != best.count) {
      best.count = now;
      heap.push(std::move(best));
      continue;
    }
    if (best.count < 1) break;
    const std::string& left = tokens[best.pair.first];
    const std::string& right = tokens[best.pair.second];
    out.merges.emplace_back(left, right);
    const auto [known, fresh] = ids.try_emplace(left + right, static_cast<int32_t>(tokens.size()));
    const int32_t merged = known->second;
    if (fresh) tokens.push_back(known->first);
    for (const uint32_t w : best.words) {
      MergeInWord(best.pair, merged, &words[w].symbols, [&](const Pair& pair, int64_t sign) {
        counts[pair] += sign * words[w].count;
        if (sign > 0) Note(pair, w, &where);
      });
    }
    push_all();
  }
  out.tokens = std::move(tokens);
  return out;
}

}  // namespace rlhf::artifact
