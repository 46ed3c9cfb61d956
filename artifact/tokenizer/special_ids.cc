#include <algorithm>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/pipeline.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;

struct Source {
  std::string path;
  Json json;
};

Source Read(const std::string& path) {
  auto text = ReadFile(path);
  return {path, text.ok() ? Json::parse(*text, nullptr, false) : Json()};
}

// What the first file that says something names; −1 says "none" in some.
std::optional<int32_t> IdIn(const std::vector<Source>& sources, const std::string& key) {
  for (const Source& source : sources) {
    if (!source.json.is_object() || !source.json.contains(key)) continue;
    const Json& id = source.json[key];
    const Json& one = id.is_array() && !id.empty() ? id[0] : id;
    if (!one.is_number_integer()) continue;
    if (one.get<int64_t>() >= 0 && one.get<int64_t>() <= INT32_MAX) return one.get<int32_t>();
    return std::nullopt;
  }
  return std::nullopt;
}

// An id that cannot come would leave samples without an end, and nobody the wiser.
absl::StatusOr<std::vector<int32_t>> EndsIn(const std::vector<Source>& sources, int64_t vocabulary) {
  for (const Source& source : sources) {
    if (!source.json.is_object() || !source.json.contains("eos_token_id")) continue;
    const Json& value = source.json["eos_token_id"];
    if (value.is_null()) continue;
    const auto problem = [&](absl::string_view found) {
      return absl::InvalidArgumentError(absl::StrCat(source.path, ": eos_token_id: expected an id of 0 to ",
                                                     vocabulary - 1, " or a list of such, found ", found));
    };
    if (value.is_array() && value.empty()) return problem("an empty list; leave the key out if there is no such id");
    if (value == -1) return std::vector<int32_t>();
    std::vector<int32_t> ends;
    // Not a copy of what may nest deeply.
    for (size_t i = 0; i < (value.is_array() ? value.size() : 1); ++i) {
      const Json& one = value.is_array() ? value[i] : value;
      if (!one.is_number_integer()) return problem(one.is_structured() ? one.type_name() : one.dump());
      const bool fits = !one.is_number_unsigned() || one.get<uint64_t>() < static_cast<uint64_t>(vocabulary);
      if (!fits || one.get<int64_t>() < 0) return problem(one.dump());
      ends.push_back(one.get<int32_t>());
    }
    return ends;
  }
  return std::vector<int32_t>();
}

}  // namespace

absl::StatusOr<SpecialIds> ReadSpecialIds(const std::string& model_dir, const Tokenizer& tokenizer) {
  const Source names = Read(model_dir + "/tokenizer_config.json");
  const std::vector<Source> sources = {Read(model_dir + "/generation_config.json"), Read(model_dir + "/config.json")};
  if (sources.front().json.is_discarded()) {
    return absl::InvalidArgumentError(
        absl::StrCat(sources.front().path, ": expected a JSON object; is the file damaged?"));
  }
  absl::Status unknown;
  const auto named = [&](const std::string& key) -> std::optional<int32_t> {
    if (!names.json.is_object() || !names.json.contains(key)) return std::nullopt;
    const Json& token = names.json[key];
    const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
    if (!text.is_string() || text == "") return std::nullopt;
    const auto id = tokenizer.TokenToId(text.get<std::string>());
    // transformers would add it, with an id that the model has no embedding for.
    if (!id && unknown.ok()) {
      unknown = absl::InvalidArgumentError(absl::StrCat(names.path, ": ", key,
                                                        ": expected a token of tokenizer.json, found \"",
                                                        text.get<std::string>().substr(0, 80), "\", which it has not"));
    }
    return id;
  };
  SpecialIds ids;
  ids.bos = named("bos_token");
  if (!ids.bos) ids.bos = IdIn(sources, "bos_token_id");
  ids.pad = named("pad_token");
  if (!ids.pad) ids.pad = IdIn(sources, "pad_token_id");

  ids.eos = named("eos_token");
  if (!unknown.ok()) return unknown;

  // A model's vocabulary may be padded beyond the tokenizer's.
  int64_t vocabulary = tokenizer.vocab_size();
  const Json& config = sources.back().json;
  if (config.is_object() && config.contains("vocab_size") && config["vocab_size"].is_number_unsigned())
    vocabulary = std::clamp<int64_t>(config["vocab_size"].get<int64_t>(), 1, INT32_MAX);
  auto ends = EndsIn(sources, vocabulary);
  if (!ends.ok()) return ends.status();
  if (ids.eos) ids.ends.push_back(*ids.eos);
  for (const int32_t id : *ends) {
    if (std::find(ids.ends.begin(), ids.ends.end(), id) == ids.ends.end()) ids.ends.push_back(id);
  }
  if (!ids.ends.empty()) ids.eos = ids.ends.front();
  return ids;
}

}  // namespace rlhf::artifact
