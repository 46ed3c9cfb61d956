#include "artifact/tokenizer/bpe_model.h"

#include <queue>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/tokenizer/byte_level.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kCacheEntries = 100000;
constexpr size_t kCachedWordBytes = 64;

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::Make(absl::flat_hash_map<std::string, int32_t> vocabulary,
                                                         const std::vector<std::pair<std::string, std::string>>& merges,
                                                         const BpeOptions& options) {
  auto model = std::make_unique<BpeModel>();
  model->vocabulary_ = std::move(vocabulary);
  model->options_ = options;
  if (!options.unk_token.empty()) {
    const auto unk = model->vocabulary_.find(options.unk_token);
    if (unk == model->vocabulary_.end())
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token \"", options.unk_token, "\" is not in model.vocab"));
    model->unk_id_ = unk->second;
  }
  int32_t rank = 0;
  for (const auto& [left, right] : merges) {
    const auto a = model->vocabulary_.find(left), b = model->vocabulary_.find(right),
               both = model->vocabulary_.find(left + right);
    if (a == model->vocabulary_.end() || b == model->vocabulary_.end() || both == model->vocabulary_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("model.merges[", rank, "]: \"", left, "\" + \"", right,
                                                     "\": its parts and its result must be in model.vocab"));
    }
    model->merges_.try_emplace(PairKey(a->second, b->second), Merge{rank, both->second});
    ++rank;
  }
  return model;
}

absl::Status BpeModel::Symbols(absl::string_view word, std::vector<int32_t>* symbols) const {
  bool last_unknown = false;
  while (!word.empty()) {
    const size_t length = std::max<size_t>(1, Utf8Length(word));
    const absl::string_view character = word.substr(0, length);
    word.remove_prefix(length);
    const auto found = vocabulary_.find(character);
    if (found != vocabulary_.end()) {
      symbols->push_back(found->second);
      last_unknown = false;
      continue;
    }
    if (options_.byte_fallback) {
      std::vector<int32_t> bytes;
      for (const char byte : character) {
        const auto id = vocabulary_.find(absl::StrFormat("<0x%02X>", static_cast<unsigned char>(byte)));
        if (id != vocabulary_.end()) bytes.push_back(id->second);
      }
      if (bytes.size() == character.size()) {
        symbols->insert(symbols->end(), bytes.begin(), bytes.end());
        last_unknown = false;
        continue;
      }
    }
    if (!unk_id_) {
      return absl::InvalidArgumentError(absl::StrCat("the vocabulary has neither the character \"",
                                                     std::string(character), "\" nor an unknown token"));
    }
    if (!(options_.fuse_unk && last_unknown)) symbols->push_back(*unk_id_);
    last_unknown = true;
  }
  return absl::OkStatus();
}

void BpeModel::MergeAll(std::vector<int32_t>* symbols) const {
  // Neighbours as a linked list, candidate merges in a heap by rank, then by place. A candidate is stale when either
  // side has changed since.
  struct Node {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, at, id, left, right;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const auto count = static_cast<int32_t>(symbols->size());
  std::vector<Node> nodes(symbols->size());
  for (int32_t i = 0; i < count; ++i) nodes[i] = {(*symbols)[i], i - 1, i + 1 < count ? i + 1 : -1};
  std::priority_queue<Candidate> heap;
  const auto offer = [&](int32_t at) {
    if (at < 0 || nodes[at].next < 0) return;
    const int32_t left = nodes[at].id, right = nodes[nodes[at].next].id;
    const auto merge = merges_.find(PairKey(left, right));
    if (merge != merges_.end()) heap.push({merge->second.rank, at, merge->second.id, left, right});
  };
  for (int32_t i = 0; i < count; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    Node& node = nodes[best.at];
    if (node.id != best.left || node.next < 0 || nodes[node.next].id != best.right) continue;
    Node& gone = nodes[node.next];
    node.id = best.id;
    node.next = gone.next;
    gone.id = -1;
    if (node.next >= 0) nodes[node.next].previous = best.at;
    offer(node.previous);
    offer(best.at);
  }
  symbols->clear();
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = nodes[i].next) symbols->push_back(nodes[i].id);
}

absl::Status BpeModel::Encode(absl::string_view word, std::vector<int32_t>* ids) const {
  if (word.empty()) return absl::OkStatus();
  if (options_.ignore_merges) {
    if (const auto whole = vocabulary_.find(word); whole != vocabulary_.end()) {
      ids->push_back(whole->second);
      return absl::OkStatus();
    }
  }
  const bool cacheable = word.size() <= kCachedWordBytes;
  if (cacheable) {
    absl::MutexLock lock(&mu_);
    if (const auto cached = cache_.find(word); cached != cache_.end()) {
      ids->insert(ids->end(), cached->second.begin(), cached->second.end());
      return absl::OkStatus();
    }
  }
  std::vector<int32_t> symbols;
  if (absl::Status status = Symbols(word, &symbols); !status.ok()) return status;
  MergeAll(&symbols);
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  if (cacheable) {
    absl::MutexLock lock(&mu_);
    if (cache_.size() < kCacheEntries) cache_.try_emplace(std::string(word), std::move(symbols));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
