#include "artifact/tokenizer/models/bpe.h"

#include <algorithm>
#include <queue>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kFewSymbols = 48;
constexpr size_t kCharacters = 0x10000;

uint64_t PairKey(uint32_t left, uint32_t right) {
  return (static_cast<uint64_t>(left) << 32) | right;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BpeModel>> BpeModel::Make(Vocabulary vocabulary, const Merges& merges,
                                                         const BpeOptions& options) {
  auto model = std::make_unique<BpeModel>();
  model->vocabulary_ = std::move(vocabulary);
  model->options_ = options;
  const Vocabulary& vocab = model->vocabulary_;
  model->merges_.reserve(merges.size());
  int32_t rank = 0;
  for (const auto& [left, right] : merges) {
    const bool prefixed = absl::StartsWith(right, options.continuing_subword_prefix);
    const std::string joined = left + (prefixed ? right.substr(options.continuing_subword_prefix.size()) : right);
    const auto a = vocab.find(left), b = vocab.find(right), both = vocab.find(joined);
    if (!prefixed || a == vocab.end() || b == vocab.end() || both == vocab.end()) {
      return absl::InvalidArgumentError(absl::StrCat("merges[", rank, "]: \"", left.substr(0, 80), "\" + \"",
                                                     right.substr(0, 80),
                                                     "\": its parts and its result must be in vocab"));
    }
    model->merges_[PairKey(a->second, b->second)] = {rank, both->second};
    model->NoteNeighbours(joined);
    ++rank;
  }
  model->byte_ids_.assign(256, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocab.find(ByteToken(static_cast<unsigned char>(byte)));
    if (found != vocab.end()) model->byte_ids_[byte] = found->second;
  }
  model->character_ids_.assign(kCharacters, -1);
  for (const auto& [token, id] : vocab) {
    if (token.empty() || Utf8Length(token) != token.size()) continue;
    size_t length = 0;
    const char32_t code = FirstCodePoint(token, &length);
    if (code < kCharacters) model->character_ids_[code] = id;
  }
  return model;
}

void BpeModel::NoteNeighbours(absl::string_view token) {
  size_t length = 0;
  char32_t left = 0;
  for (bool first = true; !token.empty(); first = false) {
    const char32_t right = FirstCodePoint(token, &length);
    if (!first) {
      if (left < 128 && right < 128) {
        ascii_neighbours_[left * 128 + right] = true;
      } else {
        neighbours_.insert(PairKey(left, right));
      }
    }
    left = right;
    token.remove_prefix(length);
  }
}

bool BpeModel::MayJoin(char32_t left, char32_t right) const {
  if (left < 128 && right < 128) return ascii_neighbours_[left * 128 + right];
  return neighbours_.contains(PairKey(left, right));
}

std::optional<int32_t> BpeModel::TokenToId(absl::string_view token) const {
  const auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? std::nullopt : std::optional<int32_t>(found->second);
}

void BpeModel::ForEachToken(const std::function<void(const std::string&, int32_t)>& visit) const {
  for (const auto& [token, id] : vocabulary_) visit(token, id);
}

const BpeModel::Merge* BpeModel::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

// A token made by merges that spans this place would hold both characters side by side. Where no such token exists, and
// both characters are symbols of their own, the parts do not see each other.
size_t BpeModel::FirstPart(absl::string_view word) const {
  if (takes_bytes_ || options_.ignore_merges || !options_.continuing_subword_prefix.empty() ||
      !options_.end_of_word_suffix.empty()) {
    return word.size();
  }
  size_t at = 0, length = 0;
  char32_t left = 0;
  bool left_known = false;
  while (at < word.size()) {
    const char32_t right = FirstCodePoint(word.substr(at), &length);
    const bool right_known = right < kCharacters && character_ids_[right] >= 0;
    if (left_known && right_known && !MayJoin(left, right)) return at;
    left = right;
    left_known = right_known;
    at += length;
  }
  return word.size();
}

std::optional<int32_t> BpeModel::CharacterId(absl::string_view character, bool first, bool last) const {
  const bool prefixed = !first && !options_.continuing_subword_prefix.empty();
  const bool suffixed = last && !options_.end_of_word_suffix.empty();
  if (prefixed || suffixed) {
    return TokenToId(absl::StrCat(prefixed ? options_.continuing_subword_prefix : "", character,
                                  suffixed ? options_.end_of_word_suffix : ""));
  }
  size_t length = 0;
  const char32_t code = FirstCodePoint(character, &length);
  if (code >= kCharacters) return TokenToId(character);
  return character_ids_[code] < 0 ? std::nullopt : std::optional<int32_t>(character_ids_[code]);
}

absl::Status BpeModel::Symbols(absl::string_view word, std::vector<int32_t>* symbols) const {
  // The unknown token is held back until a known character follows: with fuse_unk the run may go on, and bytes that
  // follow it come before it. Both as in the library.
  bool pending = false;
  int32_t unk = -1;
  const auto flush = [&] {
    if (pending) symbols->push_back(unk);
    pending = false;
  };
  for (size_t at = 0; at < word.size();) {
    const size_t length = std::max<size_t>(1, Utf8Length(word.substr(at)));
    const absl::string_view character = word.substr(at, length);
    const bool first = at == 0, last = at + length == word.size();
    at += length;
    if (const auto id = CharacterId(character, first, last)) {
      flush();
      symbols->push_back(*id);
      continue;
    }
    if (options_.byte_fallback) {
      const std::string written = absl::StrCat(first ? "" : options_.continuing_subword_prefix, character,
                                               last ? options_.end_of_word_suffix : "");
      const bool all = std::all_of(written.begin(), written.end(),
                                   [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; });
      if (all) {
        for (const char c : written) symbols->push_back(byte_ids_[static_cast<unsigned char>(c)]);
        continue;
      }
    }
    if (options_.unk_token.empty()) continue;
    const auto id = TokenToId(options_.unk_token);
    if (!id) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.unk_token \"", options_.unk_token, "\" is not in model.vocab, and the text needs it"));
    }
    unk = *id;
    if (!options_.fuse_unk) flush();
    pending = true;
  }
  flush();
  return absl::OkStatus();
}

// Looks for the best merge again and again: few symbols are done before a heap is built.
void BpeModel::MergeFew(std::vector<int32_t>* symbols) const {
  constexpr int32_t kNone = INT32_MAX;
  Merge merges[kFewSymbols];
  size_t count = symbols->size();
  int32_t* ids = symbols->data();
  const auto look = [&](size_t i) {
    const Merge* merge = FindMerge(ids[i], ids[i + 1]);
    merges[i] = merge == nullptr ? Merge{kNone, 0} : *merge;
  };
  for (size_t i = 0; i + 1 < count; ++i) look(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (merges[i].rank < merges[best].rank) best = i;
    }
    if (merges[best].rank == kNone) break;
    ids[best] = merges[best].id;
    for (size_t i = best + 1; i + 1 < count; ++i) {
      ids[i] = ids[i + 1];
      merges[i] = merges[i + 1];
    }
    --count;
    if (best > 0) look(best - 1);
    if (best + 1 < count) look(best);
  }
  symbols->resize(count);
}

// Neighbours as a linked list, candidate merges in a heap by rank, then by place. A candidate is stale when what stands
// there now merges to something else.
void BpeModel::MergeMany(std::vector<int32_t>* symbols) const {
  struct Node {
    int32_t id, previous, next;
  };
  struct Candidate {
    uint64_t order;  // rank << 32 | place
    int32_t id;
    bool operator<(const Candidate& other) const { return order > other.order; }
  };
  const auto count = static_cast<int32_t>(symbols->size());
  std::vector<Node> nodes(symbols->size());
  for (int32_t i = 0; i < count; ++i) nodes[i] = {(*symbols)[i], i - 1, i + 1 < count ? i + 1 : -1};
  std::priority_queue<Candidate> heap;
  const auto offer = [&](int32_t at) {
    if (at < 0 || nodes[at].next < 0) return;
    const Merge* merge = FindMerge(nodes[at].id, nodes[nodes[at].next].id);
    if (merge != nullptr) heap.push({PairKey(merge->rank, at), merge->id});
  };
  for (int32_t i = 0; i < count; ++i) offer(i);
  while (!heap.empty()) {
    const Candidate best = heap.top();
    heap.pop();
    const auto at = static_cast<int32_t>(best.order & 0xFFFFFFFF);
    Node& node = nodes[at];
    if (node.id < 0 || node.next < 0) continue;
    Node& gone = nodes[node.next];
    const Merge* merge = FindMerge(node.id, gone.id);
    if (merge == nullptr || merge->id != best.id) continue;
    node.id = best.id;
    node.next = gone.next;
    gone.id = -1;
    if (node.next >= 0) nodes[node.next].previous = at;
    offer(node.previous);
    offer(at);
  }
  symbols->clear();
  for (int32_t i = count > 0 ? 0 : -1; i >= 0; i = nodes[i].next) symbols->push_back(nodes[i].id);
}

absl::Status BpeModel::EncodeWord(absl::string_view given, std::vector<int32_t>* ids) const {
  std::string mapped;
  if (takes_bytes_) AppendByteSymbols(given, &mapped);
  const absl::string_view word = takes_bytes_ ? absl::string_view(mapped) : given;
  if (options_.ignore_merges) {
    if (const auto whole = vocabulary_.find(word); whole != vocabulary_.end()) {
      ids->push_back(whole->second);
      return absl::OkStatus();
    }
  }
  std::vector<int32_t> symbols;
  if (absl::Status status = Symbols(word, &symbols); !status.ok()) return status;
  if (symbols.size() <= kFewSymbols) {
    MergeFew(&symbols);
  } else {
    MergeMany(&symbols);
  }
  ids->insert(ids->end(), symbols.begin(), symbols.end());
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
