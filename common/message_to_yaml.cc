#include <algorithm>
#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>
#include <yaml-cpp/yaml.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/message_fields.h"
#include "common/spec_loader.h"
#include "common/yaml_to_message.h"

namespace rlhf {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// The shortest text that reads back as the same number.
template <typename Float>
std::string Shortest(Float value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, end.ptr);
}

std::string WellKnownText(const Message& message) {
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(message, &json).ok()) return "";
  const nlohmann::json parsed = nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  return parsed.is_string() ? parsed.get<std::string>() : "";
}

// One value of a field, printed; `index` is -1 for a single field.
std::string ScalarText(const Message& message, const FieldDescriptor* field, int index) {
  const Reflection* reflection = message.GetReflection();
#define RLHF_GET(NAME) \
  (index < 0 ? reflection->Get##NAME(message, field) : reflection->GetRepeated##NAME(message, field, index))
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(RLHF_GET(Int32));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(RLHF_GET(UInt32));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(RLHF_GET(Int64));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(RLHF_GET(UInt64));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return Shortest(RLHF_GET(Double));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return Shortest(RLHF_GET(Float));
    case FieldDescriptor::CPPTYPE_BOOL:
      return RLHF_GET(Bool) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM: {
      const auto* value = RLHF_GET(Enum);
      return IsUnspecified(value) ? value->name() : ShortEnumName(value);
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      const std::string text = RLHF_GET(String);
      if (field->type() == FieldDescriptor::TYPE_BYTES) return absl::Base64Escape(text);
      return absl::StrReplaceAll(text, {{"${", "$${"}});
    }
    case FieldDescriptor::CPPTYPE_MESSAGE:
      break;
  }
#undef RLHF_GET
  return "";
}

void EmitMessage(const Message& message, YAML::Emitter* out);

void EmitValue(const Message& message, const FieldDescriptor* field, int index, YAML::Emitter* out) {
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
    const std::string text = ScalarText(message, field, index);
    // Here the field's type decides what a text such as "3" or "true" is; other readers of YAML need the quotes.
    double number = 0;
    bool truth = false;
    const bool ambiguous = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING &&
                           (absl::SimpleAtod(text, &number) || absl::SimpleAtob(text, &truth));
    if (ambiguous) *out << YAML::DoubleQuoted;
    *out << text;
    return;
  }
  const Reflection* reflection = message.GetReflection();
  const Message& inner =
      index < 0 ? reflection->GetMessage(message, field) : reflection->GetRepeatedMessage(message, field, index);
  if (IsTextWellKnown(inner.GetDescriptor())) {
    *out << WellKnownText(inner);
  } else {
    EmitMessage(inner, out);
  }
}

void EmitMap(const Message& message, const FieldDescriptor* field, YAML::Emitter* out) {
  const Reflection* reflection = message.GetReflection();
  const FieldDescriptor* key_field = field->message_type()->map_key();
  std::vector<std::pair<std::string, const Message*>> entries;
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const Message& entry = reflection->GetRepeatedMessage(message, field, i);
    const bool is_text = key_field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    // Keys are not templates, so their text is not escaped.
    entries.emplace_back(
        is_text ? entry.GetReflection()->GetString(entry, key_field) : ScalarText(entry, key_field, -1), &entry);
  }
  std::sort(entries.begin(), entries.end());
  *out << YAML::BeginMap;
  for (const auto& [key, entry] : entries) {
    *out << YAML::Key << key << YAML::Value;
    EmitValue(*entry, field->message_type()->map_value(), -1, out);
  }
  *out << YAML::EndMap;
}

void EmitMessage(const Message& message, YAML::Emitter* out) {
  *out << YAML::BeginMap;
  for (const FieldDescriptor* field : FieldsToShow(message)) {
    *out << YAML::Key << field->name() << YAML::Value;
    if (field->is_map()) {
      EmitMap(message, field, out);
    } else if (field->is_repeated()) {
      *out << YAML::BeginSeq;
      for (int i = 0; i < message.GetReflection()->FieldSize(message, field); ++i) EmitValue(message, field, i, out);
      *out << YAML::EndSeq;
    } else {
      EmitValue(message, field, -1, out);
    }
  }
  *out << YAML::EndMap;
}

}  // namespace

std::string ToYaml(const Message& message) {
  YAML::Emitter out;
  EmitMessage(message, &out);
  return absl::StrCat(out.c_str(), "\n");
}

}  // namespace rlhf
