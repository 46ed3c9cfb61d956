// The three kinds of data files jobs read: JSON lines, one record each. A path may be a file, or a folder (all *.jsonl
// in it, by name).
//
// Errors name files without their folders, and artifacts by their digests: they reach people who have no part in where
// the service keeps them. InvalidArgument "FILE:LINE: …" for bad JSON, wrong types, missing or unknown keys (with the
// nearest valid one) and for data without a record; NotFound, PermissionDenied.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "artifact/chat_message.h"

namespace rlhf::artifact {

using Tags = std::map<std::string, std::string>;

// Every record may have "messages" ([{"role", "content"}, …]) instead of, or beside, "prompt": then the messages are
// what a model sees, and `prompt` what people are shown (of the messages, when it is not given).

// {"prompt", "response", "category"?, "tags"?}; without "response" the last message is the assistant's answer.
struct SftRecord {
  std::string prompt, response, category;
  std::vector<ChatMessage> messages;
  Tags tags;
};
// {"prompt", "reference"?, "id"?, "category"?, "tags"?}; id defaults to the line's number, from 1.
struct PromptRecord {
  std::string id, prompt, reference, category;
  std::vector<ChatMessage> messages;
  Tags tags;
};
// {"prompt", "chosen", "rejected", "tie"?, "margin"?, "strength"?, "category"?, "tags"?, "ratings"?}; ratings are
// {"CRITERION": [of the chosen, of the rejected]}.
struct ComparisonRecord {
  std::string prompt, chosen, rejected, category;
  std::vector<ChatMessage> messages;
  bool tie = false;
  double margin = 0, strength = 0;
  Tags tags;
  std::map<std::string, std::pair<double, double>> ratings;
};
// A line of a sample job's output; keys beyond these are allowed.
struct SampleRecord {
  std::string id, prompt, response, reference, category, finish_reason;
  std::vector<ChatMessage> messages;
  int index = 0;
  std::map<std::string, double> components;  // of its score, by name
  Tags tags;
};

// One conversation: an array of messages, or {"messages": […]}. `name` stands for the place in errors.
absl::StatusOr<std::vector<ChatMessage>> ParseMessages(absl::string_view text, const std::string& name);

absl::StatusOr<std::vector<SftRecord>> ReadSftData(const std::string& path);
absl::StatusOr<std::vector<PromptRecord>> ReadPromptData(const std::string& path);
absl::StatusOr<std::vector<ComparisonRecord>> ReadComparisonData(const std::string& path);
absl::StatusOr<std::vector<SampleRecord>> ReadSampleData(const std::string& path);
// The same, one record at a time: for what need not be in memory as a whole. Ends with the first error of `fn`.
absl::Status ForEachSample(const std::string& path, absl::FunctionRef<absl::Status(SampleRecord)> fn);

}  // namespace rlhf::artifact
