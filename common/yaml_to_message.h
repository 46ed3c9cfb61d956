// Walks a YAML tree along a protobuf descriptor. Internal to spec_loader.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/yaml.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rlhf {

class YamlToMessage {
 public:
  YamlToMessage(std::string file_name, const std::map<std::string, std::string>& variables)
      : file_name_(std::move(file_name)), variables_(variables) {}
  absl::Status Fill(const YAML::Node& root, google::protobuf::Message* message);

 private:
  using Field = google::protobuf::FieldDescriptor;
  using Message = google::protobuf::Message;

  absl::Status FillMessage(const YAML::Node& node, const std::string& path, Message* message);
  absl::Status FillField(const YAML::Node& node, const std::string& path, const Field* field, Message* message);
  absl::Status FillMap(const YAML::Node& node, const std::string& path, const Field* field, Message* message);
  absl::Status FillList(const YAML::Node& node, const std::string& path, const Field* field, Message* message);
  // Sets a single value, or adds one to a repeated field.
  absl::Status FillValue(const YAML::Node& node, const std::string& path, const Field* field, Message* message);
  absl::Status FillWellKnown(const YAML::Node& node, const std::string& path, Message* message);
  absl::Status SetScalar(const YAML::Node& node, const std::string& path, const Field* field, const std::string& text,
                         Message* message);
  absl::Status SetEnum(const YAML::Node& node, const std::string& path, const Field* field, const std::string& text,
                       Message* message);
  absl::StatusOr<std::string> ScalarText(const YAML::Node& node, const std::string& path, const std::string& expected);
  absl::StatusOr<std::string> Substitute(const YAML::Node& node, const std::string& text);
  absl::Status UnknownKey(const YAML::Node& key, const std::string& path,
                          const google::protobuf::Descriptor* descriptor);
  absl::Status Error(const YAML::Node& node, const std::string& message);

  const std::string file_name_;
  const std::map<std::string, std::string>& variables_;
  YAML::Mark last_mark_ = YAML::Mark::null_mark();  // of the newest node that has one
  int depth_ = 0;
  int64_t nodes_ = 0;
};

// "cosine" for COSINE of LearningRateSchedule, "learner" for ROLE_LEARNER of Role: what people write. Without
// *_UNSPECIFIED.
std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor* type);
std::string ShortEnumName(const google::protobuf::EnumValueDescriptor* value);
bool IsUnspecified(const google::protobuf::EnumValueDescriptor* value);
// google.protobuf.Timestamp and Duration, which are strings in the JSON mapping.
bool IsTextWellKnown(const google::protobuf::Descriptor* descriptor);

}  // namespace rlhf
