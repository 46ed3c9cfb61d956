#include "artifact/tokenizer/post_processor.h"

#include "absl/strings/str_cat.h"
#include "artifact/tokenizer/steps.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kMaxAround = 256;  // tokens put around a text; real files put one or two

std::string TooMany() {
  return absl::StrCat("expected at most ", kMaxAround, " tokens around a text");
}

absl::StatusOr<std::vector<int32_t>> IdsOf(const nlohmann::json& specials, const std::string& name,
                                           const std::string& path) {
  if (!specials.is_object() || !specials.contains(name))
    return absl::InvalidArgumentError(absl::StrCat(path, ": \"", name, "\" is not listed in special_tokens"));
  JsonObject special(specials[name], absl::StrCat(path, " → special_tokens[\"", name, "\"]"));
  special.Ignore({"id", "tokens"});
  const nlohmann::json& list = special.Get("ids");
  if (!list.is_array()) return special.Bad("ids", absl::StrCat("expected an array, found ", Describe(list)));
  if (list.size() > kMaxAround) return special.Bad("ids", TooMany());
  std::vector<int32_t> ids;
  for (const auto& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      return special.Bad("ids", absl::StrCat("expected token ids, found ", Describe(id)));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

absl::StatusOr<PostProcessor> MakeTemplate(JsonObject* json) {
  json->Ignore({"pair"});  // two sequences at once never occur here
  const nlohmann::json& list = json->Get("single");
  const nlohmann::json& specials = json->Get("special_tokens");
  if (!list.is_array()) return json->Bad("single", absl::StrCat("expected an array, found ", Describe(list)));
  PostProcessor out;
  bool before = true;
  for (size_t i = 0; i < list.size(); ++i) {
    JsonObject item(list[i], absl::StrCat(json->PathOf("single"), "[", i, "]"));
    const std::string path = item.path();
    if (item.Has("Sequence")) {
      JsonObject sequence(item.Get("Sequence"), item.PathOf("Sequence"));
      sequence.Ignore({"type_id"});
      if (sequence.Text("id") != "A" || !before) return item.Bad("Sequence", "expected the sequence \"A\" once");
      before = false;
      if (absl::Status status = sequence.Finish(); !status.ok()) return status;
    } else {
      JsonObject token(item.Get("SpecialToken"), item.PathOf("SpecialToken"));
      token.Ignore({"type_id"});
      const std::string name = token.Text("id");
      if (absl::Status status = token.Finish(); !status.ok()) return status;
      auto ids = IdsOf(specials, name, path);
      if (!ids.ok()) return ids.status();
      auto& side = before ? out.prefix : out.suffix;
      side.insert(side.end(), ids->begin(), ids->end());
      if (out.prefix.size() + out.suffix.size() > kMaxAround) return json->Bad("single", TooMany());
    }
    if (absl::Status status = item.Finish(); !status.ok()) return status;
  }
  if (before) return json->Bad("single", "expected the sequence \"A\", found none");
  return out;
}

// [text, id] under the key.
absl::StatusOr<int32_t> TokenOf(JsonObject* json, const char* key) {
  const nlohmann::json& pair = json->Get(key);
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_integer() || pair[1].get<int64_t>() < 0 ||
      pair[1].get<int64_t>() > INT32_MAX) {
    return json->Bad(key, absl::StrCat("expected [token, id], found ", Describe(pair)));
  }
  return pair[1].get<int32_t>();
}

absl::StatusOr<PostProcessor> MakeClassifier(JsonObject* json) {
  json->Ignore({"trim_offsets", "add_prefix_space"});  // only move offsets
  auto first = TokenOf(json, "cls");
  if (!first.ok()) return first.status();
  auto last = TokenOf(json, "sep");
  if (!last.ok()) return last.status();
  return PostProcessor{{*first}, {*last}};
}

// Each processor puts its tokens around what the one before it made.
absl::StatusOr<PostProcessor> MakeProcessors(JsonObject* json, int depth) {
  PostProcessor out;
  const auto take = [&](const PostProcessor& step) {
    out.prefix.insert(out.prefix.begin(), step.prefix.begin(), step.prefix.end());
    out.suffix.insert(out.suffix.end(), step.suffix.begin(), step.suffix.end());
    const bool fits = out.prefix.size() + out.suffix.size() <= kMaxAround;
    return fits ? absl::OkStatus() : json->Bad("processors", TooMany());
  };
  if (absl::Status status = MakeEach<PostProcessor>(json, "processors", depth, MakePostProcessor, take); !status.ok())
    return status;
  return out;
}

absl::StatusOr<PostProcessor> MakeProcessor(JsonObject* json, const std::string& type, int depth) {
  if (type == "Sequence") return MakeProcessors(json, depth);
  if (type == "TemplateProcessing") return MakeTemplate(json);
  if (type == "RobertaProcessing" || type == "BertProcessing") return MakeClassifier(json);
  if (type == "ByteLevel") {
    json->Ignore({"add_prefix_space", "trim_offsets", "use_regex"});
    return PostProcessor();
  }
  return json->Bad("type", absl::StrCat("found \"", type.substr(0, 40),
                                        "\"; supported: Sequence, TemplateProcessing, RobertaProcessing, "
                                        "BertProcessing, ByteLevel"));
}

}  // namespace

absl::StatusOr<PostProcessor> MakePostProcessor(const nlohmann::json& json, const std::string& path, int depth) {
  return MakeStep(json, path, depth, MakeProcessor);
}

}  // namespace rlhf::artifact
