// Training a byte-level BPE from files, and writing it as the library would.
#include <fstream>
#include <map>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "artifact/tokenizer.h"
#include "artifact/tokenizer/bpe_trainer.h"
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/regex.h"
#include "artifact/tokenizer/unicode.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using OrderedJson = nlohmann::ordered_json;
constexpr const char* kSpecialTokens[] = {"<pad>", "<s>", "</s>"};

absl::StatusOr<absl::flat_hash_map<std::string, int64_t>> CountWords(const std::vector<std::string>& files) {
  auto split = Regex::Compile(kByteLevelPattern);
  if (!split.ok()) return split.status();
  absl::flat_hash_map<std::string, int64_t> counts;
  for (const std::string& file : files) {
    std::ifstream in(file);
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
    std::string line;
    while (std::getline(in, line)) {
      // A line keeps its end: it is part of the text.
      if (!in.eof()) line += '\n';
      const std::string valid = ReplaceInvalidUtf8(line);
      absl::Status status = split->Each(
          valid, [&](size_t begin, size_t end) { ++counts[absl::string_view(valid).substr(begin, end - begin)]; });
      if (!status.ok()) return status;
    }
  }
  return counts;
}

OrderedJson FileOf(const TrainedBpe& bpe) {
  OrderedJson json;
  json["version"] = "1.0";
  json["truncation"] = nullptr;
  json["padding"] = nullptr;
  json["added_tokens"] = OrderedJson::array();
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
  const OrderedJson bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const OrderedJson first = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                    second = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  OrderedJson post;
  post["type"] = "TemplateProcessing";
  post["single"] = OrderedJson::array({bos, first});
  post["pair"] = OrderedJson::array({bos, first, second});
  post["special_tokens"]["<s>"] = {
      {"id", "<s>"}, {"ids", OrderedJson::array({1})}, {"tokens", OrderedJson::array({"<s>"})}};
  json["post_processor"] = post;
  json["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  OrderedJson model, merges = OrderedJson::array();
  OrderedJson::object_t vocabulary;
  model["type"] = "BPE";
  for (const char* key : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
    model[key] = nullptr;
  for (const char* key : {"fuse_unk", "byte_fallback", "ignore_merges"}) model[key] = false;
  // Tokens differ: without the search for an equal key that ordered_json does each time.
  for (size_t id = 0; id < bpe.tokens.size(); ++id) vocabulary.Container::emplace_back(bpe.tokens[id], id);
  for (const auto& [left, right] : bpe.merges) merges.push_back(absl::StrCat(left, " ", right));
  model["vocab"] = std::move(vocabulary);
  model["merges"] = std::move(merges);
  json["model"] = std::move(model);
  return json;
}

}  // namespace

absl::Status TrainByteLevelBpe(const std::vector<std::string>& files, int vocab_size, const std::string& out_dir) {
  if (vocab_size < 259)
    return absl::InvalidArgumentError(
        absl::StrCat("vocabulary size: expected at least 259 (256 bytes and 3 special tokens), found ", vocab_size));
  auto counts = CountWords(files);
  if (!counts.ok()) return counts.status();
  std::vector<std::string> tokens(std::begin(kSpecialTokens), std::end(kSpecialTokens));
  // The alphabet in order of code point, which for these symbols is the order of their UTF-8.
  std::map<std::string, unsigned char> alphabet;
  for (int byte = 0; byte < 256; ++byte)
    alphabet[ByteSymbol(static_cast<unsigned char>(byte))] = static_cast<unsigned char>(byte);
  std::vector<int32_t> id_of_byte(256);
  for (const auto& [symbol, byte] : alphabet) {
    id_of_byte[byte] = static_cast<int32_t>(tokens.size());
    tokens.push_back(symbol);
  }
  std::vector<TrainingWord> words;
  for (const auto& [text, count] : *counts) {
    TrainingWord& word = words.emplace_back();
    word.count = count;
    for (const char c : text) word.symbols.push_back(id_of_byte[static_cast<unsigned char>(c)]);
  }
  const TrainedBpe bpe = TrainBpe(std::move(tokens), std::move(words), static_cast<size_t>(vocab_size));
  if (absl::Status s = MakeDirs(out_dir); !s.ok()) return s;
  if (absl::Status s = WriteFileDurably(out_dir + "/tokenizer.json", FileOf(bpe).dump(1) + "\n"); !s.ok()) return s;
  OrderedJson config;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["bos_token"] = "<s>";
  config["eos_token"] = "</s>";
  config["pad_token"] = "<pad>";
  config["clean_up_tokenization_spaces"] = false;
  return WriteFileDurably(out_dir + "/tokenizer_config.json", config.dump(2) + "\n");
}

}  // namespace rlhf::artifact
