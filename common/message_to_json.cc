#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/message_fields.h"
#include "common/spec_loader.h"
#include "common/yaml_to_message.h"

namespace rlhf {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::ordered_json;

// As the JSON mapping has them: 64-bit integers are texts.
Json Zero(const FieldDescriptor* field) {
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return false;
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT64:
      return "0";
    default:
      return 0;
  }
}

Json WithZeros(const Message& message, Json given);

std::string KeyText(const Message& entry, const FieldDescriptor* key) {
  const Reflection* reflection = entry.GetReflection();
  switch (key->cpp_type()) {
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->GetString(entry, key);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->GetBool(entry, key) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_INT32:
      return absl::StrCat(reflection->GetInt32(entry, key));
    case FieldDescriptor::CPPTYPE_UINT32:
      return absl::StrCat(reflection->GetUInt32(entry, key));
    case FieldDescriptor::CPPTYPE_INT64:
      return absl::StrCat(reflection->GetInt64(entry, key));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(reflection->GetUInt64(entry, key));
    default:
      return "";
  }
}

// What a field that is there has in it.
Json InnerZeros(const Message& message, const FieldDescriptor* field, Json given) {
  const Reflection* reflection = message.GetReflection();
  if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return given;
  if (!field->is_repeated()) return WithZeros(reflection->GetMessage(message, field), std::move(given));
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const Message& item = reflection->GetRepeatedMessage(message, field, i);
    if (!field->is_map()) {
      Json& at = given[static_cast<size_t>(i)];
      at = WithZeros(item, std::move(at));
      continue;
    }
    const FieldDescriptor* value = field->message_type()->map_value();
    if (value->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    Json& at = given[KeyText(item, field->message_type()->map_key())];
    at = WithZeros(item.GetReflection()->GetMessage(item, value), std::move(at));
  }
  return given;
}

Json WithZeros(const Message& message, Json given) {
  // Times and the like are texts.
  if (!given.is_object() || absl::StartsWith(message.GetDescriptor()->full_name(), "google.protobuf.")) return given;
  Json out = Json::object();
  for (const FieldDescriptor* field : FieldsToShow(message)) {
    const auto it = given.find(field->name());
    out[field->name()] = it == given.end() ? Zero(field) : InnerZeros(message, field, std::move(*it));
  }
  return out;
}

}  // namespace

std::string ToJson(const Message& message, bool pretty) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  // Fails only for messages that hold an Any of an unknown type; none of ours does.
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return "{}";
  Json parsed = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return text;
  return WithZeros(message, std::move(parsed)).dump(pretty ? 1 : -1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace rlhf
