#include "artifact/tokenizer/json_object.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {

using Json = nlohmann::json;

std::string Describe(const Json& json) {
  if (json.is_structured()) return json.type_name();
  return json.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 80);
}

JsonObject::JsonObject(const Json& json, std::string path) : json_(json), path_(std::move(path)) {
  if (!json.is_object())
    status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": expected an object, found ", Describe(json)));
}

std::string JsonObject::PathOf(absl::string_view key) const {
  return absl::StrCat(path_, absl::EndsWith(path_, " ") ? "" : ".", key);
}

absl::Status JsonObject::Bad(absl::string_view key, absl::string_view problem) const {
  return absl::InvalidArgumentError(absl::StrCat(PathOf(key), ": ", problem));
}

void JsonObject::Fail(absl::string_view key, absl::string_view problem) {
  if (status_.ok()) status_ = Bad(key, problem);
}

const Json& JsonObject::Get(const char* key) {
  static const Json* null = new Json();
  known_.emplace_back(key);
  if (!json_.is_object()) return *null;
  const auto found = json_.find(key);
  return found == json_.end() ? *null : *found;
}

std::string JsonObject::Text(const char* key, const std::optional<std::string>& fallback) {
  const Json& value = Get(key);
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_null() || !fallback) Fail(key, absl::StrCat("expected a string, found ", Describe(value)));
  return fallback.value_or("");
}

bool JsonObject::Flag(const char* key, std::optional<bool> fallback) {
  const Json& value = Get(key);
  if (value.is_boolean()) return value.get<bool>();
  if (!value.is_null() || !fallback) Fail(key, absl::StrCat("expected true or false, found ", Describe(value)));
  return fallback.value_or(false);
}

int64_t JsonObject::Integer(const char* key, int64_t low, int64_t high, std::optional<int64_t> fallback) {
  const Json& value = Get(key);
  if (value.is_null() && fallback) return *fallback;
  const bool fits = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) &&
                    value.get<int64_t>() >= low && value.get<int64_t>() <= high;
  if (fits) return value.get<int64_t>();
  Fail(key, absl::StrCat("expected an integer from ", low, " to ", high, ", found ", Describe(value)));
  return fallback.value_or(low);
}

std::string JsonObject::Character(const char* key, const std::optional<std::string>& fallback) {
  std::string text = Text(key, fallback);
  if (text.empty() || Utf8Length(text) != text.size())
    Fail(key, absl::StrCat("expected one character, found \"", text.substr(0, 40), "\""));
  return text;
}

void JsonObject::Ignore(std::initializer_list<const char*> keys) {
  known_.insert(known_.end(), keys.begin(), keys.end());
}

absl::Status JsonObject::Finish() const {
  if (!status_.ok() || !json_.is_object()) return status_;
  for (const auto& item : json_.items()) {
    if (std::find(known_.begin(), known_.end(), item.key()) != known_.end()) continue;
    return Bad(item.key(), absl::StrCat("is not supported; supported here: ", absl::StrJoin(known_, ", ")));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::artifact
