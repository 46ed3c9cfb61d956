// Reads tokenizer.json into a pipeline: added tokens, normalizer, pre-tokenizer, BPE, post-processor, decoder.
#include <algorithm>
#include <functional>
#include <map>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "artifact/tokenizer.h"
#include "artifact/tokenizer/bpe_model.h"
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/regex_split.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;
using TextStep = std::function<std::string(std::string)>;
using PieceStep = std::function<absl::Status(const std::string&, std::vector<std::string>*)>;
using DecodeStep = std::function<std::vector<std::string>(std::vector<std::string>)>;

constexpr int kMaxDepth = 16;

class PipelineTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, const EncodeOptions& options) const override;
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override;
  int vocab_size() const override { return static_cast<int>(tokens_.size()); }
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  std::optional<int32_t> pad_id() const override { return pad_; }
  std::optional<int32_t> TokenToId(absl::string_view token) const override {
    if (const auto added = added_.find(std::string(token)); added != added_.end()) return added->second.id;
    const auto found = model_->vocabulary().find(token);
    return found == model_->vocabulary().end() ? std::nullopt : std::optional<int32_t>(found->second);
  }

 private:
  friend class Loader;
  struct Added {
    int32_t id = 0;
    bool special = false;
  };
  absl::Status EncodePlain(absl::string_view text, bool at_start, std::vector<int32_t>* ids) const;

  std::map<std::string, Added> added_;
  std::vector<TextStep> normalizers_;
  std::vector<PieceStep> pre_tokenizers_;
  std::unique_ptr<BpeModel> model_;
  std::vector<int32_t> prefix_, suffix_;  // what the post-processor puts around a sequence
  std::vector<DecodeStep> decoders_;
  std::vector<std::string> tokens_;  // by id; empty: no such token
  std::vector<bool> special_;
  std::optional<int32_t> bos_, eos_, pad_;
};

absl::Status PipelineTokenizer::EncodePlain(absl::string_view text, bool at_start, std::vector<int32_t>* ids) const {
  if (text.empty() && !at_start) return absl::OkStatus();
  std::string normalized(text);
  for (const TextStep& step : normalizers_) normalized = step(std::move(normalized));
  std::vector<std::string> pieces{std::move(normalized)};
  for (const PieceStep& step : pre_tokenizers_) {
    std::vector<std::string> next;
    for (const std::string& piece : pieces) {
      if (absl::Status status = step(piece, &next); !status.ok()) return status;
    }
    pieces = std::move(next);
  }
  for (const std::string& piece : pieces) {
    if (absl::Status status = model_->Encode(piece, ids); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PipelineTokenizer::Encode(absl::string_view text,
                                                               const EncodeOptions& options) const {
  const std::string valid = ReplaceInvalidUtf8(text);
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = prefix_;
  absl::string_view rest = valid;
  bool at_start = true;
  while (!rest.empty()) {
    // The earliest added token, the longest where several begin.
    size_t where = absl::string_view::npos;
    const std::pair<const std::string, Added>* hit = nullptr;
    for (const auto& entry : added_) {
      if (entry.second.special && !options.parse_special_tokens) continue;
      const size_t found = rest.find(entry.first);
      if (found == absl::string_view::npos) continue;
      if (hit == nullptr || found < where || (found == where && entry.first.size() > hit->first.size())) {
        where = found;
        hit = &entry;
      }
    }
    const absl::string_view plain = rest.substr(0, hit == nullptr ? rest.size() : where);
    if (!plain.empty()) {
      if (absl::Status status = EncodePlain(plain, at_start, &ids); !status.ok()) return status;
    }
    if (hit == nullptr) break;
    ids.push_back(hit->second.id);
    rest.remove_prefix(where + hit->first.size());
    at_start = false;
  }
  if (options.add_special_tokens) ids.insert(ids.end(), suffix_.begin(), suffix_.end());
  return ids;
}

absl::StatusOr<std::string> PipelineTokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size() || tokens_[id].empty()) {
      return absl::OutOfRangeError(absl::StrCat("token id ", id, ": expected 0 to ", vocab_size() - 1));
    }
    if (skip_special_tokens && special_[id]) continue;
    tokens.push_back(tokens_[id]);
  }
  for (const DecodeStep& step : decoders_) tokens = step(std::move(tokens));
  std::string out;
  for (const std::string& token : tokens) out += token;
  return ReplaceInvalidUtf8(out);
}

// Builds the pipeline; every error names the JSON path.
class Loader {
 public:
  Loader(std::string file, const Json& json)
      : file_(std::move(file)), json_(json), tokenizer_(std::make_unique<PipelineTokenizer>()) {}

  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir) {
    if (absl::Status s = Model(); !s.ok()) return s;
    if (absl::Status s = AddedTokens(); !s.ok()) return s;
    if (absl::Status s = Normalizer(Get("normalizer"), "normalizer", 0); !s.ok()) return s;
    if (absl::Status s = PreTokenizer(Get("pre_tokenizer"), "pre_tokenizer", 0); !s.ok()) return s;
    if (absl::Status s = PostProcessor(Get("post_processor"), "post_processor", 0); !s.ok()) return s;
    if (absl::Status s = Decoder(Get("decoder"), "decoder", 0); !s.ok()) return s;
    SpecialIds(model_dir);
    return std::unique_ptr<Tokenizer>(std::move(tokenizer_));
  }

 private:
  absl::Status Bad(absl::string_view path, absl::string_view problem) const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ": ", path, ": ", problem));
  }
  const Json& Get(const char* key) const {
    static const Json null;
    return json_.contains(key) ? json_[key] : null;
  }
  static std::string Type(const Json& json) {
    return json.is_object() && json.contains("type") && json["type"].is_string() ? json["type"].get<std::string>() : "";
  }
  static std::string Text(const Json& json, const char* key) {
    return json.contains(key) && json[key].is_string() ? json[key].get<std::string>() : "";
  }
  static bool Flag(const Json& json, const char* key, bool fallback) {
    return json.contains(key) && json[key].is_boolean() ? json[key].get<bool>() : fallback;
  }

  absl::Status Model() {
    const Json& model = Get("model");
    if (!model.is_object()) return Bad("model", "expected an object");
    if (Text(model, "type") != "BPE")
      return Bad("model.type", absl::StrCat("found \"", Text(model, "type"), "\"; supported: \"BPE\""));
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      if (model.contains(key) && !model[key].is_null() && model[key] != "" && model[key] != 0.0) {
        return Bad(absl::StrCat("model.", key),
                   absl::StrCat("found ", model[key].dump(), ", which is not supported; supported: null"));
      }
    }
    if (!model.contains("vocab") || !model["vocab"].is_object())
      return Bad("model.vocab", "expected an object of token to id");
    absl::flat_hash_map<std::string, int32_t> vocabulary;
    for (const auto& [token, id] : model["vocab"].items()) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > (1 << 28))
        return Bad("model.vocab", absl::StrCat("\"", token, "\": bad id ", id.dump()));
      if (absl::Status s = Name(id.get<int32_t>(), token, false); !s.ok()) return s;
      vocabulary[token] = id.get<int32_t>();
    }
    if (!model.contains("merges") || !model["merges"].is_array()) return Bad("model.merges", "expected an array");
    std::vector<std::pair<std::string, std::string>> merges;
    for (const Json& merge : model["merges"]) {
      if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
        continue;
      }
      const std::string text = merge.is_string() ? merge.get<std::string>() : "";
      const size_t space = text.find(' ');
      if (space == std::string::npos)
        return Bad(absl::StrCat("model.merges[", merges.size(), "]"), "expected \"left right\" or [left, right]");
      merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
    BpeOptions options;
    options.byte_fallback = Flag(model, "byte_fallback", false);
    options.ignore_merges = Flag(model, "ignore_merges", false);
    options.fuse_unk = Flag(model, "fuse_unk", false);
    options.unk_token = Text(model, "unk_token");
    auto made = BpeModel::Make(std::move(vocabulary), merges, options);
    if (!made.ok()) return Bad("model", made.status().message());
    tokenizer_->model_ = *std::move(made);
    return absl::OkStatus();
  }

  absl::Status Name(int32_t id, const std::string& token, bool special) {
    if (id < 0 || id > (1 << 28)) return Bad("added_tokens", absl::StrCat("bad id ", id));
    if (static_cast<size_t>(id) >= tokenizer_->tokens_.size()) {
      tokenizer_->tokens_.resize(id + 1);
      tokenizer_->special_.resize(id + 1);
    }
    tokenizer_->tokens_[id] = token;
    if (special) tokenizer_->special_[id] = true;
    return absl::OkStatus();
  }

  absl::Status AddedTokens() {
    const Json& added = Get("added_tokens");
    if (added.is_null()) return absl::OkStatus();
    if (!added.is_array()) return Bad("added_tokens", "expected an array");
    for (const Json& entry : added) {
      if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_integer() ||
          Text(entry, "content").empty()) {
        return Bad("added_tokens", absl::StrCat("expected {id, content, …}, found ", entry.dump().substr(0, 80)));
      }
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        if (Flag(entry, key, false))
          return Bad(absl::StrCat("added_tokens.", key),
                     absl::StrCat("true for \"", Text(entry, "content"), "\" is not supported"));
      }
      const bool special = Flag(entry, "special", false);
      if (absl::Status s = Name(entry["id"].get<int32_t>(), Text(entry, "content"), special); !s.ok()) return s;
      tokenizer_->added_[Text(entry, "content")] = {entry["id"].get<int32_t>(), special};
    }
    return absl::OkStatus();
  }

  template <typename Fn>
  absl::Status Each(const Json& json, const char* key, const std::string& path, int depth, Fn fn) {
    if (depth > kMaxDepth) return Bad(path, "nested too deeply");
    if (!json.contains(key) || !json[key].is_array()) return Bad(path, absl::StrCat("expected an array ", key));
    int i = 0;
    for (const Json& part : json[key]) {
      if (absl::Status s = fn(part, absl::StrCat(path, ".", key, "[", i++, "]"), depth + 1); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  absl::Status Replacement(const Json& json, const std::string& path, std::string* from, std::string* to) {
    if (!json.contains("pattern") || !json["pattern"].is_object() || Text(json["pattern"], "String").empty()) {
      return Bad(absl::StrCat(path, ".pattern"), "expected {\"String\": …}; regular expressions are not supported");
    }
    *from = Text(json["pattern"], "String");
    *to = Text(json, "content");
    return absl::OkStatus();
  }

  absl::Status Normalizer(const Json& json, const std::string& path, int depth) {
    if (json.is_null()) return absl::OkStatus();
    const std::string type = Type(json);
    if (type == "Sequence")
      return Each(json, "normalizers", path, depth,
                  [this](const Json& j, const std::string& p, int d) { return Normalizer(j, p, d); });
    if (type == "Prepend") {
      tokenizer_->normalizers_.push_back(
          [prefix = Text(json, "prepend")](std::string text) { return text.empty() ? text : prefix + text; });
    } else if (type == "Replace") {
      std::string from, to;
      if (absl::Status s = Replacement(json, path, &from, &to); !s.ok()) return s;
      tokenizer_->normalizers_.push_back([from, to](std::string text) {
        return absl::StrReplaceAll(text, {{from, to}});
      });
    } else {
      return Bad(absl::StrCat(path, ".type"),
                 absl::StrCat("found \"", type, "\"; supported: Sequence, Prepend, Replace"));
    }
    return absl::OkStatus();
  }

  absl::Status PreTokenizer(const Json& json, const std::string& path, int depth) {
    if (json.is_null()) return absl::OkStatus();
    const std::string type = Type(json);
    if (type == "Sequence")
      return Each(json, "pretokenizers", path, depth,
                  [this](const Json& j, const std::string& p, int d) { return PreTokenizer(j, p, d); });
    if (type != "ByteLevel")
      return Bad(absl::StrCat(path, ".type"), absl::StrCat("found \"", type, "\"; supported: Sequence, ByteLevel"));
    const bool add_space = Flag(json, "add_prefix_space", true), use_regex = Flag(json, "use_regex", true);
    auto split = RegexSplit::Compile(kByteLevelPattern);
    if (!split.ok()) return split.status();
    tokenizer_->pre_tokenizers_.push_back([add_space, use_regex, split = *std::move(split)](
                                              const std::string& given, std::vector<std::string>* out) -> absl::Status {
      const std::string text = add_space && !given.empty() && given[0] != ' ' ? " " + given : given;
      std::vector<absl::string_view> pieces;
      if (use_regex) {
        if (absl::Status s = split.Split(text, &pieces); !s.ok()) return s;
      } else {
        pieces.push_back(text);
      }
      for (const absl::string_view piece : pieces) out->push_back(ToByteSymbols(piece));
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }

  absl::Status PostProcessor(const Json& json, const std::string& path, int depth) {
    if (json.is_null()) return absl::OkStatus();
    const std::string type = Type(json);
    if (type == "Sequence")
      return Each(json, "processors", path, depth,
                  [this](const Json& j, const std::string& p, int d) { return PostProcessor(j, p, d); });
    if (type == "ByteLevel") return absl::OkStatus();  // it only moves offsets, which we do not report
    if (type != "TemplateProcessing")
      return Bad(absl::StrCat(path, ".type"),
                 absl::StrCat("found \"", type, "\"; supported: Sequence, ByteLevel, TemplateProcessing"));
    bool before = true;
    return Each(json, "single", path, depth, [&](const Json& item, const std::string& where, int) -> absl::Status {
      if (item.is_object() && item.contains("Sequence")) {
        before = false;
        return absl::OkStatus();
      }
      const std::string name =
          item.is_object() && item.contains("SpecialToken") ? Text(item["SpecialToken"], "id") : "";
      const Json& special = json.contains("special_tokens") ? json["special_tokens"] : Json();
      if (name.empty() || !special.is_object() || !special.contains(name) || !special[name].contains("ids") ||
          !special[name]["ids"].is_array()) {
        return Bad(where, "expected a Sequence, or a SpecialToken listed in special_tokens");
      }
      for (const Json& id : special[name]["ids"]) {
        if (!id.is_number_integer()) return Bad(where, "expected token ids");
        (before ? tokenizer_->prefix_ : tokenizer_->suffix_).push_back(id.get<int32_t>());
      }
      return absl::OkStatus();
    });
  }

  absl::Status Decoder(const Json& json, const std::string& path, int depth) {
    if (json.is_null()) return absl::OkStatus();
    const std::string type = Type(json);
    if (type == "Sequence")
      return Each(json, "decoders", path, depth,
                  [this](const Json& j, const std::string& p, int d) { return Decoder(j, p, d); });
    const auto each_token = [this](TextStep step) {
      tokenizer_->decoders_.push_back([step = std::move(step)](std::vector<std::string> tokens) {
        for (std::string& token : tokens) token = step(std::move(token));
        return tokens;
      });
    };
    if (type == "ByteLevel") {
      each_token([](std::string token) { return FromByteSymbols(token); });
    } else if (type == "Replace") {
      std::string from, to;
      if (absl::Status s = Replacement(json, path, &from, &to); !s.ok()) return s;
      each_token([from, to](std::string token) { return absl::StrReplaceAll(token, {{from, to}}); });
    } else if (type == "ByteFallback") {
      each_token([](std::string token) {
        unsigned byte = 0;
        if (token.size() == 6 && std::sscanf(token.c_str(), "<0x%02X>", &byte) == 1)
          return std::string(1, static_cast<char>(byte));
        return token;
      });
    } else if (type == "Fuse") {
      tokenizer_->decoders_.push_back([](std::vector<std::string> tokens) {
        std::string all;
        for (const std::string& token : tokens) all += token;
        return std::vector<std::string>{ReplaceInvalidUtf8(all)};
      });
    } else if (type == "Strip") {
      const std::string content = Text(json, "content");
      const int start = json.value("start", 0), stop = json.value("stop", 0);
      each_token([content, start, stop](std::string token) {
        for (int i = 0; i < start && !content.empty() && token.rfind(content, 0) == 0; ++i)
          token.erase(0, content.size());
        for (int i = 0; i < stop && token.size() >= content.size() && !content.empty() &&
                        token.compare(token.size() - content.size(), content.size(), content) == 0;
             ++i) {
          token.erase(token.size() - content.size());
        }
        return token;
      });
    } else {
      return Bad(
          absl::StrCat(path, ".type"),
          absl::StrCat("found \"", type, "\"; supported: Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip"));
    }
    return absl::OkStatus();
  }

  // tokenizer_config.json names tokens, config.json and generation_config.json ids; the first that says something wins.
  void SpecialIds(const std::string& model_dir) {
    const auto read = [&](const char* name) {
      auto text = ReadFile(model_dir + "/" + name);
      return text.ok() ? Json::parse(*text, nullptr, false) : Json();
    };
    const Json names = read("tokenizer_config.json"), generation = read("generation_config.json"),
               config = read("config.json");
    const auto find = [&](const std::string& kind) -> std::optional<int32_t> {
      if (names.is_object() && names.contains(kind + "_token")) {
        const Json& token = names[kind + "_token"];
        const std::string text = token.is_string()   ? token.get<std::string>()
                                 : token.is_object() ? Text(token, "content")
                                                     : "";
        if (const auto id = tokenizer_->TokenToId(text); !text.empty() && id) return id;
      }
      for (const Json* source : {&generation, &config}) {
        if (!source->is_object() || !source->contains(kind + "_token_id")) continue;
        const Json& id = (*source)[kind + "_token_id"];
        if (id.is_number_integer()) return id.get<int32_t>();
        if (id.is_array() && !id.empty() && id[0].is_number_integer()) return id[0].get<int32_t>();
      }
      return std::nullopt;
    };
    tokenizer_->bos_ = find("bos");
    tokenizer_->eos_ = find("eos");
    tokenizer_->pad_ = find("pad");
  }

  std::string file_;
  const Json& json_;
  std::unique_ptr<PipelineTokenizer> tokenizer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  auto text = ReadFile(path);
  if (!text.ok()) return text.status();
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a JSON object; is the file damaged?"));
  return Loader(path, json).Load(model_dir);
}

}  // namespace rlhf::artifact
