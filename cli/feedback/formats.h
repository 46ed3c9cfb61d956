// Other people's formats of comparisons, as ours. Pure functions; thread-safe.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::cli {

enum class Format {
  kAuto,         // by the record's keys
  kPlain,        // {"prompt","chosen","rejected",…}: texts
  kMessages,     // "chosen" and "rejected" are lists of {"role","content"}, with or without "prompt"
  kTranscript,   // "chosen" and "rejected" are "\n\nHuman: … \n\nAssistant: …", as in the HH-RLHF data
  kArgilla,      // a record with "fields" and "responses"
  kLabelStudio,  // a task with "data" and "annotations", or one of the JSON-MIN export
  kOwn,          // what `feedback export` writes: rlhf.v1.Comparison
};
absl::StatusOr<Format> FormatByName(const std::string& name);  // "auto", "plain", …; InvalidArgument names them all

// One record may hold several people's judgements, or none (an unanswered task). InvalidArgument says what was expected
// and what was found.
absl::StatusOr<std::vector<v1::Comparison>> ParseRecord(const std::string& text, Format format);

// Inside: the two collection tools.
absl::StatusOr<std::vector<v1::Comparison>> ParseArgilla(const nlohmann::json& record);
absl::StatusOr<std::vector<v1::Comparison>> ParseLabelStudio(const nlohmann::json& task);

// How `feedback export` writes one: "own" (everything), "plain" (chosen and rejected), "sft" (edits and written answers
// as prompt and response; empty for others).
std::string FormatComparison(const v1::Comparison& comparison, const std::string& format);

}  // namespace rlhf::cli
