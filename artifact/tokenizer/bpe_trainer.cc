// Training a byte-level BPE: the most frequent pair is merged until the vocabulary is full. Ties go to the pair with
// the smaller ids, as the `tokenizers` library does.
#include <fstream>
#include <map>
#include <queue>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer.h"
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/regex_split.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Pair = std::pair<int32_t, int32_t>;
constexpr const char* kSpecialTokens[] = {"<pad>", "<s>", "</s>"};

struct Word {
  std::vector<int32_t> symbols;
  int64_t count = 0;
};

struct Best {
  int64_t count;
  Pair pair;
  bool operator<(const Best& other) const { return count != other.count ? count < other.count : pair > other.pair; }
};

absl::StatusOr<std::map<std::string, int64_t>> CountWords(const std::vector<std::string>& files) {
  auto split = RegexSplit::Compile(kByteLevelPattern);
  if (!split.ok()) return split.status();
  std::map<std::string, int64_t> counts;
  for (const std::string& file : files) {
    std::ifstream in(file);
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
    std::string line;
    while (std::getline(in, line)) {
      // A line keeps its end: it is part of the text.
      if (!in.eof()) line += '\n';
      const std::string valid = ReplaceInvalidUtf8(line);
      std::vector<absl::string_view> pieces;
      if (absl::Status status = split->Split(valid, &pieces); !status.ok()) return status;
      for (const absl::string_view piece : pieces) ++counts[ToByteSymbols(piece)];
    }
  }
  return counts;
}

}  // namespace

absl::Status TrainByteLevelBpe(const std::vector<std::string>& files, int vocab_size, const std::string& out_dir) {
  if (vocab_size < 259)
    return absl::InvalidArgumentError(
        absl::StrCat("vocabulary size: expected at least 259 (256 bytes and 3 special tokens), found ", vocab_size));
  auto counts = CountWords(files);
  if (!counts.ok()) return counts.status();
  std::vector<std::string> tokens(std::begin(kSpecialTokens), std::end(kSpecialTokens));
  std::map<std::string, int32_t> ids;
  {
    // The alphabet in order of code point, which for these symbols is the order of their UTF-8.
    std::set<std::string> alphabet;
    for (int byte = 0; byte < 256; ++byte) alphabet.insert(ByteSymbol(static_cast<unsigned char>(byte)));
    for (const std::string& symbol : alphabet) {
      ids[symbol] = static_cast<int32_t>(tokens.size());
      tokens.push_back(symbol);
    }
  }
  std::vector<Word> words;
  for (const auto& [text, count] : *counts) {
    Word word;
    word.count = count;
    for (size_t at = 0; at < text.size();) {
      const size_t length = Utf8Length(absl::string_view(text).substr(at));
      word.symbols.push_back(ids.at(text.substr(at, length)));
      at += length;
    }
    words.push_back(std::move(word));
  }
  std::map<Pair, int64_t> pair_counts;
  std::map<Pair, std::set<size_t>> where;
  for (size_t w = 0; w < words.size(); ++w) {
    for (size_t i = 0; i + 1 < words[w].symbols.size(); ++i) {
      const Pair pair{words[w].symbols[i], words[w].symbols[i + 1]};
      pair_counts[pair] += words[w].count;
      where[pair].insert(w);
    }
  }
  std::priority_queue<Best> heap;
  for (const auto& [pair, count] : pair_counts) heap.push({count, pair});
  std::vector<std::pair<std::string, std::string>> merges;
  while (static_cast<int>(tokens.size()) < vocab_size && !heap.empty()) {
    const Best best = heap.top();
    heap.pop();
    const int64_t current = pair_counts[best.pair];
    if (current != best.count) {
      if (current > 0) heap.push({current, best.pair});
      continue;
    }
    if (current < 1) break;
    const std::string merged = tokens[best.pair.first] + tokens[best.pair.second];
    const auto [known, fresh] = ids.try_emplace(merged, static_cast<int32_t>(tokens.size()));
    if (fresh) tokens.push_back(merged);
    const int32_t id = known->second;
    merges.emplace_back(tokens[best.pair.first], tokens[best.pair.second]);
    std::set<Pair> grown;
    for (const size_t w : where[best.pair]) {
      std::vector<int32_t>& symbols = words[w].symbols;
      std::vector<int32_t> next;
      for (size_t i = 0; i + 1 < symbols.size(); ++i) pair_counts[{symbols[i], symbols[i + 1]}] -= words[w].count;
      for (size_t i = 0; i < symbols.size(); ++i) {
        if (i + 1 < symbols.size() && symbols[i] == best.pair.first && symbols[i + 1] == best.pair.second) {
          next.push_back(id);
          ++i;
        } else {
          next.push_back(symbols[i]);
        }
      }
      symbols = std::move(next);
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const Pair pair{symbols[i], symbols[i + 1]};
        pair_counts[pair] += words[w].count;
        where[pair].insert(w);
        if (pair.first == id || pair.second == id) grown.insert(pair);
      }
    }
    for (const Pair& pair : grown) heap.push({pair_counts[pair], pair});
    pair_counts[best.pair] = 0;
  }
  nlohmann::ordered_json json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = nlohmann::ordered_json::array();
  for (int32_t id = 0; id < 3; ++id) {
    json["added_tokens"].push_back({{"id", id},
                                    {"content", kSpecialTokens[id]},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", true}});
  }
  json["normalizer"] = nullptr;
  json["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const nlohmann::ordered_json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const nlohmann::ordered_json first = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                               second = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  nlohmann::ordered_json post;
  post["type"] = "TemplateProcessing";
  post["single"] = nlohmann::ordered_json::array({bos, first});
  post["pair"] = nlohmann::ordered_json::array({bos, first, second});
  post["special_tokens"]["<s>"] = {
      {"id", "<s>"}, {"ids", nlohmann::ordered_json::array({1})}, {"tokens", nlohmann::ordered_json::array({"<s>"})}};
  json["post_processor"] = post;
  json["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  nlohmann::ordered_json vocabulary, merge_list = nlohmann::ordered_json::array();
  for (size_t id = 0; id < tokens.size(); ++id) vocabulary[tokens[id]] = id;
  for (const auto& [left, right] : merges) merge_list.push_back(left + " " + right);
  nlohmann::ordered_json model;
  model["type"] = "BPE";
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    model[key] = nullptr;
  for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"}) model[key] = false;
  model["vocab"] = vocabulary;
  model["merges"] = merge_list;
  json["model"] = model;
  if (absl::Status s = MakeDirs(out_dir); !s.ok()) return s;
  if (absl::Status s = WriteFileDurably(out_dir + "/tokenizer.json", json.dump(1) + "\n"); !s.ok()) return s;
  nlohmann::ordered_json config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["bos_token"] = "<s>";
  config["eos_token"] = "</s>";
  config["pad_token"] = "<pad>";
  config["clean_up_tokenization_spaces"] = false;
  return WriteFileDurably(out_dir + "/tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace rlhf::artifact
