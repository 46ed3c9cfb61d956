#include "cli/feedback/formats.h"

#include <algorithm>
#include <map>
#include <utility>

#include <google/protobuf/util/json_util.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rlhf::cli {
namespace {

using Json = nlohmann::json;

constexpr char kHuman[] = "\n\nHuman:", kAssistant[] = "\n\nAssistant:";

const std::map<std::string, Format>& Names() {
  static const auto* const names = new std::map<std::string, Format>{{"auto", Format::kAuto},
                                                                     {"plain", Format::kPlain},
                                                                     {"messages", Format::kMessages},
                                                                     {"transcript", Format::kTranscript},
                                                                     {"argilla", Format::kArgilla},
                                                                     {"label-studio", Format::kLabelStudio},
                                                                     {"own", Format::kOwn}};
  return *names;
}

absl::Status Expected(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("expected ", what));
}

bool IsText(const Json& record, const char* key) {
  return record.contains(key) && record[key].is_string();
}

// What every format may say beside the pair.
absl::Status Extras(const Json& record, v1::Comparison* out) {
  for (const char* key : {"id", "rater", "comment"}) {
    if (!record.contains(key) || record[key].is_null()) continue;
    if (!record[key].is_string() && !record[key].is_number())
      return Expected(absl::StrCat("a text in \"", key, "\", found ", record[key].type_name()));
    const std::string value = record[key].is_string() ? record[key].get<std::string>() : record[key].dump();
    key == std::string("id")      ? out->set_id(value)
    : key == std::string("rater") ? out->set_rater(value)
                                  : out->set_comment(value);
  }
  if (IsText(record, "category")) out->mutable_prompt()->set_category(record["category"].get<std::string>());
  if (record.contains("strength") && !record["strength"].is_null()) {
    if (!record["strength"].is_number())
      return Expected(absl::StrCat("a number in \"strength\", found ", record["strength"].type_name()));
    out->set_strength(record["strength"].get<double>());
  }
  if (record.contains("tie") && !record["tie"].is_null()) {
    if (!record["tie"].is_boolean())
      return Expected(absl::StrCat("true or false in \"tie\", found ", record["tie"].type_name()));
    if (record["tie"].get<bool>()) out->set_preference(v1::TIE);
  }
  if (record.contains("tags") && !record["tags"].is_null()) {
    if (!record["tags"].is_object()) return Expected("an object of texts in \"tags\"");
    for (const auto& [tag, value] : record["tags"].items()) {
      if (!value.is_string()) return Expected(absl::StrCat("a text in \"tags.", tag, "\""));
      (*out->mutable_prompt()->mutable_tags())[tag] = value.get<std::string>();
    }
  }
  return absl::OkStatus();
}

v1::Comparison Pair(std::string prompt, std::string chosen, std::string rejected) {
  v1::Comparison out;
  out.set_kind(v1::FEEDBACK_COMPARISON);
  out.mutable_prompt()->set_text(std::move(prompt));
  out.mutable_first()->set_text(std::move(chosen));
  out.mutable_second()->set_text(std::move(rejected));
  out.mutable_first()->set_source("imported");
  out.mutable_second()->set_source("imported");
  out.set_preference(v1::FIRST);
  return out;
}

absl::StatusOr<v1::Comparison> Plain(const Json& record) {
  for (const char* key : {"prompt", "chosen", "rejected"}) {
    if (!record.contains(key)) return Expected(absl::StrCat("the key \"", key, "\", found none"));
    if (!record[key].is_string())
      return Expected(absl::StrCat("a text in \"", key, "\", found ", record[key].type_name()));
  }
  return Pair(record["prompt"].get<std::string>(), record["chosen"].get<std::string>(),
              record["rejected"].get<std::string>());
}

absl::StatusOr<std::vector<v1::ChatMessage>> MessagesOf(const Json& list, const std::string& key) {
  std::vector<v1::ChatMessage> messages;
  if (!list.is_array()) return Expected(absl::StrCat("a list of messages in \"", key, "\", found ", list.type_name()));
  for (const Json& entry : list) {
    if (!entry.is_object() || !IsText(entry, "role") || !IsText(entry, "content"))
      return Expected(absl::StrCat("messages {\"role\",\"content\"} of texts in \"", key, "\""));
    messages.emplace_back().set_role(entry["role"].get<std::string>());
    messages.back().set_content(entry["content"].get<std::string>());
  }
  return messages;
}

bool Same(const v1::ChatMessage& a, const v1::ChatMessage& b) {
  return a.role() == b.role() && a.content() == b.content();
}

// As people read a conversation.
std::string Rendered(const std::vector<v1::ChatMessage>& messages) {
  if (messages.size() == 1 && messages[0].role() == "user") return messages[0].content();
  std::string text;
  for (const v1::ChatMessage& message : messages)
    absl::StrAppend(&text, text.empty() ? "" : "\n\n", message.role(), ": ", message.content());
  return text;
}

absl::StatusOr<v1::Comparison> Messages(const Json& record) {
  std::vector<v1::ChatMessage> prompt, sides[2];
  const char* const keys[2] = {"chosen", "rejected"};
  if (record.contains("prompt") && record["prompt"].is_array()) {
    auto list = MessagesOf(record["prompt"], "prompt");
    if (!list.ok()) return list.status();
    prompt = *std::move(list);
  }
  for (int i = 0; i < 2; ++i) {
    if (!record.contains(keys[i])) return Expected(absl::StrCat("the key \"", keys[i], "\", found none"));
    auto list = MessagesOf(record[keys[i]], keys[i]);
    if (!list.ok()) return list.status();
    sides[i] = *std::move(list);
    if (sides[i].empty() || sides[i].back().role() != "assistant")
      return Expected(absl::StrCat("\"", keys[i], "\" to end with a message of the assistant"));
  }
  // What both begin with belongs to the prompt; each side ends with its answer.
  size_t common = 0;
  while (common + 1 < sides[0].size() && common + 1 < sides[1].size() && Same(sides[0][common], sides[1][common]))
    ++common;
  if (common + 1 != sides[0].size() || common + 1 != sides[1].size())
    return Expected("\"chosen\" and \"rejected\" to differ in their last message only");
  const bool repeats = common >= prompt.size() && std::equal(prompt.begin(), prompt.end(), sides[0].begin(), Same);
  if (!repeats || prompt.empty())
    prompt.insert(prompt.end(), sides[0].begin(), sides[0].begin() + static_cast<int64_t>(common));
  else
    prompt.assign(sides[0].begin(), sides[0].begin() + static_cast<int64_t>(common));
  if (prompt.empty() && IsText(record, "prompt")) {
    prompt.emplace_back().set_role("user");
    prompt.back().set_content(record["prompt"].get<std::string>());
  }
  if (prompt.empty()) return Expected("a prompt: messages before the assistant's last one, or \"prompt\"");
  v1::Comparison out = Pair(Rendered(prompt), sides[0].back().content(), sides[1].back().content());
  if (prompt.size() > 1 || prompt[0].role() != "user") {
    for (v1::ChatMessage& message : prompt) *out.mutable_prompt()->add_messages() = std::move(message);
  }
  return out;
}

absl::StatusOr<v1::Comparison> Transcript(const Json& record) {
  for (const char* key : {"chosen", "rejected"}) {
    if (!IsText(record, key)) return Expected(absl::StrCat("a transcript in \"", key, "\""));
  }
  const auto chosen = record["chosen"].get<std::string>(), rejected = record["rejected"].get<std::string>();
  // The prompt is what both have in common, up to where the assistant speaks for the last time in that.
  const size_t common = static_cast<size_t>(
      std::mismatch(chosen.begin(), chosen.begin() + static_cast<int64_t>(std::min(chosen.size(), rejected.size())),
                    rejected.begin())
          .first -
      chosen.begin());
  const size_t marker = chosen.substr(0, common).rfind(kAssistant);
  if (marker == std::string::npos || !absl::StrContains(absl::string_view(chosen).substr(0, marker), kHuman))
    return Expected("two transcripts \"\\n\\nHuman: … \\n\\nAssistant: …\" that begin alike");
  const size_t split = marker + sizeof(kAssistant) - 1;
  for (const std::string* side : {&chosen, &rejected}) {
    if (absl::StrContains(absl::string_view(*side).substr(split), kHuman))
      return Expected("transcripts that differ in the assistant's last turn only, found another turn after it");
  }
  return Pair(chosen.substr(0, split), chosen.substr(split), rejected.substr(split));
}

absl::StatusOr<v1::Comparison> Own(const std::string& text) {
  v1::Comparison out;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &out);
  if (!status.ok()) return Expected(absl::StrCat("an rlhf.v1.Comparison: ", std::string(status.message())));
  return out;
}

Format Guess(const Json& record) {
  if (record.contains("fields") && record.contains("responses")) return Format::kArgilla;
  if (record.contains("data") && (record.contains("annotations") || record.contains("completions")))
    return Format::kLabelStudio;
  if (record.contains("first") && record.contains("second") && record.contains("prompt") &&
      record["prompt"].is_object())
    return Format::kOwn;
  if (record.contains("annotator") || record.contains("annotation_id")) return Format::kLabelStudio;
  if (record.contains("chosen") && record["chosen"].is_array()) return Format::kMessages;
  if (!record.contains("prompt") && IsText(record, "chosen") &&
      absl::StrContains(record["chosen"].get_ref<const std::string&>(), kAssistant))
    return Format::kTranscript;
  return Format::kPlain;
}

}  // namespace

absl::StatusOr<Format> FormatByName(const std::string& name) {
  const auto it = Names().find(name);
  if (it != Names().end()) return it->second;
  std::string all;
  for (const auto& [known, format] : Names()) absl::StrAppend(&all, all.empty() ? "" : ", ", known);
  return absl::InvalidArgumentError(absl::StrCat("format: expected one of ", all, "; found \"", name, "\""));
}

absl::StatusOr<std::vector<v1::Comparison>> ParseRecord(const std::string& text, Format format) {
  const Json record = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (record.is_discarded()) return Expected("JSON, found something else or only a part of it");
  if (!record.is_object()) return Expected(absl::StrCat("a JSON object, found ", record.type_name()));
  if (format == Format::kAuto) format = Guess(record);
  absl::StatusOr<v1::Comparison> made;
  switch (format) {
    case Format::kArgilla:
      return ParseArgilla(record);
    case Format::kLabelStudio:
      return ParseLabelStudio(record);
    case Format::kOwn:
      made = Own(text);
      if (!made.ok()) return made.status();
      return std::vector<v1::Comparison>{*std::move(made)};
    case Format::kMessages:
      made = Messages(record);
      break;
    case Format::kTranscript:
      made = Transcript(record);
      break;
    default:
      made = Plain(record);
  }
  if (!made.ok()) return made.status();
  if (const absl::Status extras = Extras(record, &*made); !extras.ok()) return extras;
  return std::vector<v1::Comparison>{*std::move(made)};
}

std::string FormatComparison(const v1::Comparison& c, const std::string& format) {
  if (format == "own") {
    std::string text;
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    (void)google::protobuf::util::MessageToJsonString(c, &text, options);
    return text;
  }
  nlohmann::ordered_json line;
  line["prompt"] = c.prompt().text();
  if (format == "sft") {
    const bool theirs =
        c.second().source() == "edited" || (c.second().source() == "written" && c.preference() == v1::SECOND);
    if (!theirs || c.second().text().empty()) return "";
    line["response"] = c.second().text();
  } else {
    if (c.kind() == v1::FEEDBACK_RATING) return "";
    const bool second = c.preference() == v1::SECOND;
    line["chosen"] = (second ? c.second() : c.first()).text();
    line["rejected"] = (second ? c.first() : c.second()).text();
    if (c.preference() == v1::TIE) line["tie"] = true;
    if (c.strength() > 0) line["strength"] = c.strength();
    if (!c.rater().empty()) line["rater"] = c.rater();
    if (!c.comment().empty()) line["comment"] = c.comment();
    line["id"] = c.id();
  }
  if (!c.prompt().category().empty()) line["category"] = c.prompt().category();
  std::map<std::string, std::string> tags(c.prompt().tags().begin(), c.prompt().tags().end());
  if (format != "sft") tags.insert(c.tags().begin(), c.tags().end());
  if (!tags.empty()) line["tags"] = tags;
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace rlhf::cli
