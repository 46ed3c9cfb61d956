#include "common/message_fields.h"

#include <algorithm>

namespace rlhf {
namespace {

using google::protobuf::FieldDescriptor;

bool ShowsZero(const FieldDescriptor* field) {
  if (field->is_repeated() || field->has_presence()) return false;
  const auto type = field->cpp_type();
  return type != FieldDescriptor::CPPTYPE_STRING && type != FieldDescriptor::CPPTYPE_ENUM;
}

}  // namespace

std::vector<const FieldDescriptor*> FieldsToShow(const google::protobuf::Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  const auto* descriptor = message.GetDescriptor();
  if (descriptor->file()->name() == "rlhf/v1/job.proto") return fields;
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (ShowsZero(field) && !message.GetReflection()->HasField(message, field)) fields.push_back(field);
  }
  std::sort(fields.begin(), fields.end(),
            [](const FieldDescriptor* a, const FieldDescriptor* b) { return a->number() < b->number(); });
  return fields;
}

}  // namespace rlhf
