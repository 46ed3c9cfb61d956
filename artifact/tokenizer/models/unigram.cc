// Unigram (Kudo 2018): the segmentation with the highest sum of scores, by Viterbi.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/byte_trie.h"
#include "artifact/tokenizer/models/factories.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

constexpr double kUnknownPenalty = 10;  // below the lowest score; SentencePiece's

// The score as the library has it: its JSON reader makes a double of the digits and another of the power of ten, so
// that many scores are off by one unit in the last place, and ties between segmentations fall as they do there.
double AsTheLibraryReads(double exact) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text), std::abs(exact), std::chars_format::scientific).ptr;
  uint64_t digits = 0;
  int fraction = 0;
  const char* at = text;
  bool point = false;
  for (; at != end && *at != 'e'; ++at) {
    if (*at == '.') {
      point = true;
      continue;
    }
    digits = digits * 10 + static_cast<uint64_t>(*at - '0');
    fraction += point ? 1 : 0;
  }
  int exponent = 0;
  if (at == end || !absl::SimpleAtoi(absl::string_view(at + 1, static_cast<size_t>(end - at - 1)), &exponent))
    return exact;
  exponent -= fraction;
  if (exponent >= 0 || exponent < -300) return exact;
  const double value = static_cast<double>(digits) / std::pow(10.0, -exponent);
  return std::signbit(exact) ? -value : value;
}

class UnigramModel : public TokenModel {
 public:
  UnigramModel(std::vector<std::pair<std::string, double>> pieces, int32_t unk_id, bool byte_fallback)
      : pieces_(std::move(pieces)), unk_id_(unk_id), byte_fallback_(byte_fallback) {
    double lowest = std::numeric_limits<double>::infinity();
    std::vector<std::pair<std::string, int32_t>> entries;
    for (size_t id = pieces_.size(); id-- > 0;) {  // backwards: of equal pieces the last counts
      entries.emplace_back(pieces_[id].first, static_cast<int32_t>(id));
      lowest = std::min(lowest, pieces_[id].second);
    }
    trie_ = ByteTrie(std::move(entries));
    unknown_score_ = lowest - kUnknownPenalty;
    for (int byte = 0; byte < 256; ++byte)
      byte_ids_.push_back(TokenToId(ByteToken(static_cast<unsigned char>(byte))).value_or(-1));
  }

  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    int32_t id = -1;
    return !token.empty() && trie_.Longest(token, &id) == token.size() ? std::optional<int32_t>(id) : std::nullopt;
  }
  void ForEachToken(const std::function<void(const std::string&, int32_t)>& visit) const override {
    for (size_t id = 0; id < pieces_.size(); ++id) visit(pieces_[id].first, static_cast<int32_t>(id));
  }

 protected:
  absl::Status EncodeWord(absl::string_view word, std::vector<int32_t>* ids) const override {
    std::vector<Node> best(word.size() + 1);
    for (size_t at = 0; at < word.size();) {
      const double here = best[at].score;
      const size_t character = std::max<size_t>(1, Utf8Length(word.substr(at)));
      bool has_single = false;
      const auto offer = [&](size_t length, int32_t id, double score) {
        Node& node = best[at + length];
        if (node.from >= 0 && here + score <= node.score) return;
        node = {here + score, static_cast<int64_t>(at), id};
      };
      trie_.ForEachPrefix(word.substr(at), [&](size_t length, int32_t id) {
        offer(length, id, pieces_[id].second);
        has_single = has_single || length == character;
      });
      if (!has_single) {
        if (unk_id_ < 0) return NoUnknown();
        offer(character, unk_id_, unknown_score_);
      }
      at += character;
    }
    return Emit(word, best, ids);
  }

 private:
  struct Node {
    double score = 0;
    int64_t from = -1;
    int32_t id = 0;
  };

  static absl::Status NoUnknown() {
    return absl::InvalidArgumentError("the vocabulary lacks a character of the text, and model.unk_id is null");
  }

  // Back along the best path; neighbouring unknown parts are one.
  absl::Status Emit(absl::string_view word, const std::vector<Node>& best, std::vector<int32_t>* ids) const {
    std::vector<absl::string_view> parts;
    size_t end = word.size();
    bool fusing = false;
    while (end > 0) {
      const Node& node = best[end];
      const auto from = static_cast<size_t>(node.from);
      const bool unknown = unk_id_ >= 0 && node.id == unk_id_;
      if (unknown && fusing) {
        parts.back() = word.substr(from, parts.back().size() + end - from);
      } else {
        parts.push_back(word.substr(from, end - from));
      }
      fusing = unknown;
      end = from;
    }
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      if (const auto id = TokenToId(*part)) {
        ids->push_back(*id);
        continue;
      }
      const bool bytes = byte_fallback_ && std::all_of(part->begin(), part->end(), [&](char c) {
                           return byte_ids_[static_cast<unsigned char>(c)] >= 0;
                         });
      if (bytes) {
        for (const char c : *part) ids->push_back(byte_ids_[static_cast<unsigned char>(c)]);
      } else if (unk_id_ >= 0) {
        ids->push_back(unk_id_);
      } else {
        return NoUnknown();
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::pair<std::string, double>> pieces_;
  int32_t unk_id_;  // -1: none
  bool byte_fallback_;
  double unknown_score_ = 0;
  ByteTrie trie_;
  std::vector<int32_t> byte_ids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenModel>> MakeUnigram(JsonObject* json) {
  const nlohmann::json& vocab = json->Get("vocab");
  if (!vocab.is_array()) return json->Bad("vocab", absl::StrCat("expected an array, found ", Describe(vocab)));
  std::vector<std::pair<std::string, double>> pieces;
  pieces.reserve(vocab.size());
  for (const auto& entry : vocab) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      return json->Bad(absl::StrCat("vocab[", pieces.size(), "]"),
                       absl::StrCat("expected [piece, score], found ", Describe(entry)));
    }
    if (const auto& piece = entry[0].get_ref<const std::string&>(); piece.size() > kMaxTokenBytes) {
      return json->Bad(absl::StrCat("vocab[", pieces.size(), "]"),
                       absl::StrCat("expected at most ", kMaxTokenBytes, " bytes, found ", piece.size()));
    }
    pieces.emplace_back(entry[0].get<std::string>(), AsTheLibraryReads(entry[1].get<double>()));
  }
  if (pieces.size() > static_cast<size_t>(kMaxTokenId))
    return json->Bad("vocab", absl::StrCat("expected at most ", kMaxTokenId, " pieces"));
  const auto last = static_cast<int64_t>(pieces.size()) - 1;
  const auto unk_id = static_cast<int32_t>(json->Integer("unk_id", 0, std::max<int64_t>(last, 0), -1));
  if (unk_id > last) return json->Bad("unk_id", "expected the id of a piece; vocab is empty");
  return std::make_unique<UnigramModel>(std::move(pieces), unk_id, json->Flag("byte_fallback", false));
}

}  // namespace rlhf::artifact
