// Tables for people, JSON for programs.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include <google/protobuf/message.h>

#include "absl/time/time.h"

namespace rlhf::cli {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
  void Row(std::vector<std::string> cells);  // a line each, whatever is in them (Printable)
  std::string Text() const;                  // aligned columns, two spaces between

 private:
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// `output` is "json" or "yaml".
void PrintMessage(const std::string& output, const google::protobuf::Message& message);
// One array of messages: JSON, or YAML documents.
template <typename Range>
void PrintMessages(const std::string& output, const Range& messages);

// For commands that know no YAML.
inline void PrintJson(const google::protobuf::Message& message) {
  PrintMessage("json", message);
}
template <typename Range>
void PrintJsonArray(const Range& messages) {
  PrintMessages("json", messages);
}

std::string Expiry(absl::Time at, absl::Time now);  // "2026-12-30 09:00 UTC", with "expired " before it once it is past
std::string Short(const std::string& digest);       // "sha256:0123456789ab"
std::string Number(double value);                   // four significant digits
std::string Bytes(uint64_t bytes);                  // "1.2 MB"

std::string MessageToJson(const google::protobuf::Message& message);

std::string MessageToYaml(const google::protobuf::Message& message);

template <typename Range>
void PrintMessages(const std::string& output, const Range& messages) {
  if (output == "yaml") {
    for (const auto& message : messages) std::fputs(("---\n" + MessageToYaml(message)).c_str(), stdout);
    return;
  }
  std::string out = "[";
  bool first = true;
  for (const auto& message : messages) {
    if (!first) out += ",\n";
    first = false;
    out += MessageToJson(message);
  }
  out += "]\n";
  std::fputs(out.c_str(), stdout);
}

}  // namespace rlhf::cli
