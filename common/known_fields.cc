#include "common/known_fields.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/unknown_field_set.h>

#include "absl/strings/str_cat.h"
#include "common/unsuited.h"

namespace rlhf {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

void Look(const Message& message, const std::string& path, size_t most, std::vector<NewerPart>* found) {
  const Reflection* const reflection = message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection->GetUnknownFields(message);
  for (int i = 0; i < unknown.field_count() && found->size() < most; ++i) {
    const int number = unknown.field(i).number();
    found->push_back({absl::StrCat(path, "#", number),
                      absl::StrCat("expected a field that is known, found one of number ", number)});
  }
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool of_message = field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!of_message && field->cpp_type() != FieldDescriptor::CPPTYPE_ENUM) continue;
    const int size = field->is_repeated() ? reflection->FieldSize(message, field) : 1;
    for (int i = 0; i < size && found->size() < most; ++i) {
      const std::string name = field->is_repeated() ? absl::StrCat(path, std::string(field->name()), "[", i, "]")
                                                    : absl::StrCat(path, std::string(field->name()));
      if (of_message) {
        Look(field->is_repeated() ? reflection->GetRepeatedMessage(message, field, i)
                                  : reflection->GetMessage(message, field),
             absl::StrCat(name, "."), most, found);
        continue;
      }
      const int value = field->is_repeated() ? reflection->GetRepeatedEnumValue(message, field, i)
                                             : reflection->GetEnumValue(message, field);
      if (field->enum_type()->FindValueByNumber(value) != nullptr) continue;
      found->push_back({name, absl::StrCat("expected a value of ", std::string(field->enum_type()->name()),
                                           ", found number ", value)});
    }
  }
}

}  // namespace

std::vector<NewerPart> NewerParts(const Message& message, size_t most) {
  std::vector<NewerPart> found;
  Look(message, "", most, &found);
  return found;
}

absl::Status CheckKnown(const Message& message, absl::string_view what, absl::string_view who) {
  const std::vector<NewerPart> newer = NewerParts(message, 1);
  if (newer.empty()) return absl::OkStatus();
  return UnsuitedError(absl::StrCat(what, " has what only a newer release knows (", newer.front().field, ": ",
                                    newer.front().found, "): update ", who));
}

}  // namespace rlhf
