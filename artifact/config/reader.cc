#include "artifact/config/reader.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace rlhf::artifact {
namespace {

// An error may quote megabytes of a hostile file, and travels in a header of a call.
std::string Shortened(absl::string_view text) {
  constexpr size_t kMost = 1000;
  if (text.size() <= kMost) return std::string(text);
  size_t size = kMost;
  while (size > 0 && (static_cast<unsigned char>(text[size]) & 0xC0) == 0x80) --size;
  return absl::StrCat(text.substr(0, size), "…");
}

}  // namespace

absl::Status ConfigReader::Problem(absl::string_view key, absl::string_view problem) const {
  return absl::InvalidArgumentError(absl::StrCat(where_, ": ", Shortened(key), ": ", Shortened(problem)));
}

const ConfigReader::Json& ConfigReader::Raw(const char* key) {
  static const Json kNull;
  known_.insert(key);
  return json_.contains(key) ? json_[key] : kNull;
}

absl::Status ConfigReader::Int(const char* key, int64_t* out, bool required, int64_t low, int64_t high) {
  const Json& value = Raw(key);
  if (value.is_null()) return required ? Problem(key, "expected a whole number, found nothing") : absl::OkStatus();
  if (!value.is_number_integer()) return Problem(key, absl::StrCat("expected a whole number, found ", value.dump()));
  // An unsigned number beyond int64 would wrap.
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high))
    return Problem(key, absl::StrCat("expected ", low, " to ", high, ", found ", value.dump()));
  const auto number = value.get<int64_t>();
  if (number < low || number > high)
    return Problem(key, absl::StrCat("expected ", low, " to ", high, ", found ", number));
  *out = number;
  return absl::OkStatus();
}

absl::Status ConfigReader::Double(const char* key, double* out, double low, double high) {
  const Json& value = Raw(key);
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_number()) return Problem(key, absl::StrCat("expected a number, found ", value.dump()));
  const auto number = value.get<double>();
  if (!(number >= low && number <= high))
    return Problem(key, absl::StrCat("expected ", low, " to ", high, ", found ", value.dump()));
  *out = number;
  return absl::OkStatus();
}

absl::Status ConfigReader::Bool(const char* key, bool* out) {
  const Json& value = Raw(key);
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_boolean()) return Problem(key, absl::StrCat("expected true or false, found ", value.dump()));
  *out = value.get<bool>();
  return absl::OkStatus();
}

absl::Status ConfigReader::Text(const char* key, std::string* out) {
  const Json& value = Raw(key);
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_string()) return Problem(key, absl::StrCat("expected a text, found ", value.dump()));
  *out = value.get<std::string>();
  return absl::OkStatus();
}

absl::Status ConfigReader::TokenId(const char* key, std::optional<int32_t>* out) {
  const Json& all = Raw(key);
  if (all.is_null() || (all.is_array() && all.empty())) return absl::OkStatus();
  for (const Json& value : all.is_array() ? all : Json::array({all})) {
    if (!value.is_number_integer() || value.get<int64_t>() < -1 || value.get<int64_t>() > INT32_MAX)
      return Problem(key, absl::StrCat("expected token ids, found ", all.dump()));
  }
  const auto id = (all.is_array() ? all[0] : all).get<int32_t>();
  if (id >= 0) *out = id;  // −1 says "none" in some files
  return absl::OkStatus();
}

absl::Status ConfigReader::Only(const char* key, const std::vector<Json>& allowed) {
  const Json& value = Raw(key);
  if (value.is_null() || std::find(allowed.begin(), allowed.end(), value) != allowed.end()) return absl::OkStatus();
  std::vector<std::string> names;
  for (const Json& good : allowed) names.push_back(good.dump());
  return Problem(key, absl::StrCat("found ", value.dump(), ", which is not supported; supported: ",
                                   names.empty() ? "null" : absl::StrJoin(names, ", ")));
}

void ConfigReader::Harmless(std::initializer_list<const char*> keys) {
  known_.insert(keys.begin(), keys.end());
}

absl::Status ConfigReader::CheckAllKnown() const {
  std::vector<std::string> unknown;
  for (const auto& [key, value] : json_.items()) {
    if (known_.count(key) == 0) unknown.push_back(absl::StrCat(key, " = ", value.dump().substr(0, 80)));
  }
  if (unknown.empty()) return absl::OkStatus();
  return Problem(absl::StrJoin(unknown, ", "),
                 "not known for this model_type, and an unknown setting may change the numbers; remove it if it does "
                 "not (docs/models.md lists what is read)");
}

}  // namespace rlhf::artifact
