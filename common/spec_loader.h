// YAML to protobuf (JSON mapping), with errors that name file, line, column, the nearest valid key and what is allowed.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "absl/status/statusor.h"

namespace rlhf {

// Fills `message` from YAML. Field names as in the proto file (snake_case) or lowerCamelCase. Enums by name,
// case-insensitively ("cosine"). Unknown keys, wrong types, duplicate keys, several kinds of one oneof: InvalidArgument
// "FILE:LINE:COL: …".
// `${key}` and `${key:-default}` in scalars are replaced from `variables` first; an unknown key without default is an
// error.
absl::Status ParseYaml(const std::string& yaml, const std::string& file_name,
                       const std::map<std::string, std::string>& variables, google::protobuf::Message* message);
absl::Status LoadYamlFile(const std::string& path, const std::map<std::string, std::string>& variables,
                          google::protobuf::Message* message);
// What is set, and of what the service reports also the numbers and truth values that are zero; of a specification
// (job.proto) what is set alone.
std::string ToYaml(const google::protobuf::Message& message);
std::string ToJson(const google::protobuf::Message& message, bool pretty = true);  // snake_case names

// The candidate with the smallest edit distance, or empty when none is near.
std::string NearestName(const std::string& name, const std::vector<std::string>& candidates);

}  // namespace rlhf
