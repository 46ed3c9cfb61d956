#include "common/yaml_to_message.h"

#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/spec_loader.h"

namespace rlhf {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::OneofDescriptor;
using google::protobuf::Reflection;

// Aliases (*name) can make a small text a huge or endless tree.
constexpr int kMaxDepth = 64;
constexpr int64_t kMaxNodes = 1'000'000;
// Beyond this, a double no longer tells neighbouring integers apart.
constexpr double kExactInteger = 9007199254740992.0;

std::string Join(const std::string& path, const std::string& key) {
  return path.empty() ? key : absl::StrCat(path, ".", key);
}

std::string Found(const YAML::Node& node) {
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null:
      return "nothing";
    case YAML::NodeType::Sequence:
      return "a list";
    case YAML::NodeType::Map:
      return "a mapping";
    case YAML::NodeType::Scalar:
      break;
  }
  return absl::StrCat("\"", node.Scalar(), "\"");
}

// "3e5" and "100000" are the same integer to a person.
template <typename Int>
bool ParseInteger(const std::string& text, Int* value) {
  if (absl::SimpleAtoi(text, value)) return true;
  double number = 0;
  if (text.find_first_of(".eE") == std::string::npos || !absl::SimpleAtod(text, &number)) return false;
  if (!(std::fabs(number) <= kExactInteger) || std::floor(number) != number) return false;
  if (number < static_cast<double>(std::numeric_limits<Int>::min()) ||
      number > static_cast<double>(std::numeric_limits<Int>::max())) {
    return false;
  }
  *value = static_cast<Int>(number);
  return true;
}

std::string IntegerBounds(FieldDescriptor::CppType type) {
  switch (type) {
    case FieldDescriptor::CPPTYPE_INT32:
      return "an integer from -2147483648 to 2147483647";
    case FieldDescriptor::CPPTYPE_UINT32:
      return "an integer from 0 to 4294967295";
    case FieldDescriptor::CPPTYPE_UINT64:
      return "an integer from 0 to 18446744073709551615";
    default:
      return "an integer of 64 bits";
  }
}

std::string Expected(const FieldDescriptor* field) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a finite number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_STRING:
      return "a text";
    case FieldDescriptor::CPPTYPE_ENUM:
      return absl::StrCat("one of ", absl::StrJoin(EnumNames(field->enum_type()), ", "));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "a mapping";
    default:
      return IntegerBounds(field->cpp_type());
  }
}

const FieldDescriptor* FindField(const Descriptor* descriptor, const std::string& key) {
  if (const FieldDescriptor* field = descriptor->FindFieldByName(key)) return field;
  return descriptor->FindFieldByCamelcaseName(key);
}

}  // namespace

bool IsUnspecified(const EnumValueDescriptor* value) {
  return absl::EndsWith(value->name(), "_UNSPECIFIED");
}

std::string ShortEnumName(const EnumValueDescriptor* value) {
  std::string prefix;
  for (const char c : value->type()->name()) {
    if (absl::ascii_isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix.push_back('_');
    prefix.push_back(absl::ascii_toupper(static_cast<unsigned char>(c)));
  }
  absl::string_view name = value->name();
  absl::ConsumePrefix(&name, absl::StrCat(prefix, "_"));
  return absl::AsciiStrToLower(name);
}

std::vector<std::string> EnumNames(const EnumDescriptor* type) {
  std::vector<std::string> names;
  for (int i = 0; i < type->value_count(); ++i) {
    if (!IsUnspecified(type->value(i))) names.push_back(ShortEnumName(type->value(i)));
  }
  return names;
}

bool IsTextWellKnown(const Descriptor* descriptor) {
  return descriptor->full_name() == "google.protobuf.Timestamp" ||
         descriptor->full_name() == "google.protobuf.Duration";
}

absl::Status YamlToMessage::Error(const YAML::Node& node, const std::string& message) {
  const YAML::Mark mark = node.Mark().is_null() ? last_mark_ : node.Mark();
  if (mark.is_null()) return absl::InvalidArgumentError(absl::StrCat(file_name_, ": ", message));
  return absl::InvalidArgumentError(absl::StrCat(file_name_, ":", mark.line + 1, ":", mark.column + 1, ": ", message));
}

absl::Status YamlToMessage::Fill(const YAML::Node& root, Message* message) {
  if (!root.IsDefined() || root.IsNull()) {
    return Error(root, absl::StrCat("the file is empty: expected a mapping (", message->GetDescriptor()->name(), ")"));
  }
  return FillMessage(root, "", message);
}

absl::Status YamlToMessage::FillMessage(const YAML::Node& node, const std::string& path, Message* message) {
  if (!node.IsMap()) {
    const std::string hint = node.IsNull() ? " (write {} for one without keys)" : "";
    return Error(node,
                 absl::StrCat(path.empty() ? "the file" : path, ": expected a mapping, found ", Found(node), hint));
  }
  std::set<const FieldDescriptor*> seen;
  std::map<const OneofDescriptor*, std::string> chosen;
  for (const auto& entry : node) {
    if (!entry.first.Mark().is_null()) last_mark_ = entry.first.Mark();
    if (!entry.first.IsScalar()) return Error(entry.first, absl::StrCat("expected a key, found ", Found(entry.first)));
    const std::string& key = entry.first.Scalar();
    const FieldDescriptor* field = FindField(message->GetDescriptor(), key);
    if (field == nullptr) return UnknownKey(entry.first, path, message->GetDescriptor());
    if (!seen.insert(field).second)
      return Error(entry.first, absl::StrCat(Join(path, key), ": the key is given twice"));
    if (const OneofDescriptor* oneof = field->real_containing_oneof(); oneof != nullptr) {
      const auto [it, is_first] = chosen.emplace(oneof, key);
      if (!is_first) {
        return Error(entry.first, absl::StrCat(Join(path, key), ": \"", it->second,
                                               "\" is given already; only one of them can be (", oneof->name(), ")"));
      }
    }
    if (absl::Status status = FillField(entry.second, Join(path, key), field, message); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status YamlToMessage::UnknownKey(const YAML::Node& key, const std::string& path, const Descriptor* descriptor) {
  std::vector<std::string> names;
  for (int i = 0; i < descriptor->field_count(); ++i) names.push_back(descriptor->field(i)->name());
  const std::string nearest = NearestName(key.Scalar(), names);
  const std::string hint = nearest.empty() ? "" : absl::StrCat(" (did you mean \"", nearest, "\"?)");
  const std::string allowed = names.empty() ? "no keys" : absl::StrJoin(names, ", ");
  return Error(key, absl::StrCat("unknown key \"", Join(path, key.Scalar()), "\"", hint, "; allowed here: ", allowed));
}

absl::Status YamlToMessage::FillField(const YAML::Node& node, const std::string& path, const Field* field,
                                      Message* message) {
  if (!node.Mark().is_null()) last_mark_ = node.Mark();
  if (++nodes_ > kMaxNodes) return Error(node, "too many values (aliases that repeat each other?)");
  if (++depth_ > kMaxDepth) return Error(node, absl::StrCat("nested deeper than ", kMaxDepth, " levels"));
  const absl::Cleanup leave = [this] { --depth_; };
  if (field->is_map()) return FillMap(node, path, field, message);
  if (field->is_repeated()) return FillList(node, path, field, message);
  return FillValue(node, path, field, message);
}

absl::Status YamlToMessage::FillMap(const YAML::Node& node, const std::string& path, const Field* field,
                                    Message* message) {
  if (!node.IsMap()) return Error(node, absl::StrCat(path, ": expected a mapping, found ", Found(node)));
  const FieldDescriptor* key_field = field->message_type()->map_key();
  const FieldDescriptor* value_field = field->message_type()->map_value();
  std::set<std::string> seen;
  for (const auto& entry : node) {
    if (!entry.first.Mark().is_null()) last_mark_ = entry.first.Mark();
    if (!entry.first.IsScalar()) return Error(entry.first, absl::StrCat("expected a key, found ", Found(entry.first)));
    const std::string& key = entry.first.Scalar();
    const std::string entry_path = Join(path, key);
    if (!seen.insert(key).second) return Error(entry.first, absl::StrCat(entry_path, ": the key is given twice"));
    Message* added = message->GetReflection()->AddMessage(message, field);
    if (absl::Status status = SetScalar(entry.first, entry_path, key_field, key, added); !status.ok()) return status;
    if (absl::Status status = FillField(entry.second, entry_path, value_field, added); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status YamlToMessage::FillList(const YAML::Node& node, const std::string& path, const Field* field,
                                     Message* message) {
  if (!node.IsSequence()) return Error(node, absl::StrCat(path, ": expected a list, found ", Found(node)));
  int index = 0;
  for (const auto& item : node) {
    if (++nodes_ > kMaxNodes) return Error(item, "too many values (aliases that repeat each other?)");
    absl::Status status = FillValue(item, absl::StrCat(path, "[", index++, "]"), field, message);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status YamlToMessage::FillValue(const YAML::Node& node, const std::string& path, const Field* field,
                                      Message* message) {
  if (!node.Mark().is_null()) last_mark_ = node.Mark();
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    const Reflection* reflection = message->GetReflection();
    Message* inner =
        field->is_repeated() ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field);
    if (IsTextWellKnown(field->message_type())) return FillWellKnown(node, path, inner);
    return FillMessage(node, path, inner);
  }
  const absl::StatusOr<std::string> text = ScalarText(node, path, Expected(field));
  if (!text.ok()) return text.status();
  return SetScalar(node, path, field, *text, message);
}

absl::Status YamlToMessage::FillWellKnown(const YAML::Node& node, const std::string& path, Message* message) {
  const bool is_time = message->GetDescriptor()->name() == "Timestamp";
  const std::string expected = is_time ? "a time such as 2026-01-31T12:00:00Z" : "a duration such as 90s";
  const absl::StatusOr<std::string> text = ScalarText(node, path, expected);
  if (!text.ok()) return text.status();
  const std::string json = nlohmann::json(*text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (google::protobuf::util::JsonStringToMessage(json, message).ok()) return absl::OkStatus();
  return Error(node, absl::StrCat(path, ": expected ", expected, ", found \"", *text, "\""));
}

absl::StatusOr<std::string> YamlToMessage::ScalarText(const YAML::Node& node, const std::string& path,
                                                      const std::string& expected) {
  if (!node.IsScalar()) return Error(node, absl::StrCat(path, ": expected ", expected, ", found ", Found(node)));
  return Substitute(node, node.Scalar());
}

absl::StatusOr<std::string> YamlToMessage::Substitute(const YAML::Node& node, const std::string& text) {
  std::string result;
  size_t at = 0;
  while (true) {
    const size_t begin = text.find("${", at);
    if (begin == std::string::npos) return result + text.substr(at);
    if (begin > at && text[begin - 1] == '$') {  // "$${" stands for "${"
      absl::StrAppend(&result, text.substr(at, begin - 1 - at), "${");
      at = begin + 2;
      continue;
    }
    const size_t end = text.find('}', begin);
    if (end == std::string::npos)
      return Error(node, "\"${\" without \"}\" (write \"$${\" for the characters themselves)");
    const std::string inside = text.substr(begin + 2, end - begin - 2);
    const size_t colon = inside.find(":-");
    const std::string name = inside.substr(0, colon);
    absl::StrAppend(&result, text.substr(at, begin - at));
    if (const auto it = variables_.find(name); it != variables_.end()) {
      result += it->second;
    } else if (colon != std::string::npos) {
      result += inside.substr(colon + 2);
    } else {
      std::vector<std::string> names;
      for (const auto& [known, value] : variables_) names.push_back(known);
      const std::string nearest = NearestName(name, names);
      const std::string hint = nearest.empty() ? "" : absl::StrCat(" (\"", nearest, "\" is set)");
      return Error(node, absl::StrCat("${", name, "} has no value and no default", hint, "; give it with --set ", name,
                                      "=VALUE"));
    }
    at = end + 1;
  }
}

absl::Status YamlToMessage::SetEnum(const YAML::Node& node, const std::string& path, const Field* field,
                                    const std::string& text, Message* message) {
  const EnumDescriptor* type = field->enum_type();
  for (int i = 0; i < type->value_count(); ++i) {
    const EnumValueDescriptor* value = type->value(i);
    const bool matches =
        absl::EqualsIgnoreCase(text, value->name()) || absl::EqualsIgnoreCase(text, ShortEnumName(value));
    if (!matches || IsUnspecified(value)) continue;
    const Reflection* reflection = message->GetReflection();
    field->is_repeated() ? reflection->AddEnum(message, field, value) : reflection->SetEnum(message, field, value);
    return absl::OkStatus();
  }
  const std::string nearest = NearestName(text, EnumNames(type));
  const std::string hint = nearest.empty() ? "" : absl::StrCat(" (did you mean \"", nearest, "\"?)");
  return Error(node, absl::StrCat(path, ": expected ", Expected(field), ", found \"", text, "\"", hint));
}

absl::Status YamlToMessage::SetScalar(const YAML::Node& node, const std::string& path, const Field* field,
                                      const std::string& text, Message* message) {
  const Reflection* reflection = message->GetReflection();
  const bool add = field->is_repeated();
  const auto wrong = [&] {
    return Error(node, absl::StrCat(path, ": expected ", Expected(field), ", found \"", text, "\""));
  };
#define RLHF_SET(NAME, VALUE) \
  (add ? reflection->Add##NAME(message, field, VALUE) : reflection->Set##NAME(message, field, VALUE))
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32: {
      int32_t value = 0;
      if (!ParseInteger(text, &value)) return wrong();
      RLHF_SET(Int32, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_UINT32: {
      uint32_t value = 0;
      if (!ParseInteger(text, &value)) return wrong();
      RLHF_SET(UInt32, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t value = 0;
      if (!ParseInteger(text, &value)) return wrong();
      RLHF_SET(Int64, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value = 0;
      if (!ParseInteger(text, &value)) return wrong();
      RLHF_SET(UInt64, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) return wrong();
      RLHF_SET(Double, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_FLOAT: {
      float value = 0;
      if (!absl::SimpleAtof(text, &value) || !std::isfinite(value)) return wrong();
      RLHF_SET(Float, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      const bool value = absl::EqualsIgnoreCase(text, "true");
      if (!value && !absl::EqualsIgnoreCase(text, "false")) return wrong();
      RLHF_SET(Bool, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_STRING:
      if (field->type() == FieldDescriptor::TYPE_BYTES) {
        return Error(node, absl::StrCat(path, ": raw bytes cannot be given in a file"));
      }
      RLHF_SET(String, text);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      return SetEnum(node, path, field, text, message);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return wrong();
  }
#undef RLHF_SET
  return absl::OkStatus();
}

}  // namespace rlhf
