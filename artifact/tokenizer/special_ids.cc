#include <nlohmann/json.hpp>

#include "artifact/tokenizer/pipeline.h"
#include "common/durable_file.h"

namespace rlhf::artifact {

SpecialIds ReadSpecialIds(const std::string& model_dir, const Tokenizer& tokenizer) {
  using Json = nlohmann::json;
  const auto read = [&](const char* name) {
    auto text = ReadFile(model_dir + "/" + name);
    return text.ok() ? Json::parse(*text, nullptr, false) : Json();
  };
  const Json names = read("tokenizer_config.json"), generation = read("generation_config.json"),
             config = read("config.json");
  const auto find = [&](const std::string& kind) -> std::optional<int32_t> {
    if (names.is_object() && names.contains(kind + "_token")) {
      const Json& token = names[kind + "_token"];
      const Json& text = token.is_object() && token.contains("content") ? token["content"] : token;
      if (text.is_string()) {
        if (const auto id = tokenizer.TokenToId(text.get<std::string>())) return id;
      }
    }
    for (const Json* source : {&generation, &config}) {
      if (!source->is_object() || !source->contains(kind + "_token_id")) continue;
      const Json& id = (*source)[kind + "_token_id"];
      const Json& one = id.is_array() && !id.empty() ? id[0] : id;
      if (one.is_number_integer()) return one.get<int32_t>();
    }
    return std::nullopt;
  };
  return {find("bos"), find("eos"), find("pad")};
}

}  // namespace rlhf::artifact
