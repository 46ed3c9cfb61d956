// Argilla and Label Studio: projects name their fields as they like, so fields are found by what they look like.
#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/feedback/formats.h"

namespace rlhf::cli {
namespace {

using Json = nlohmann::json;

absl::Status Unexpected(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("expected ", what));
}

// Of an object; null where it has no such key. The files are others': any key may be missing, of any kind.
const Json& At(const Json& object, const char* key) {
  static const Json* const null = new Json();
  const auto found = object.find(key);
  return found == object.end() ? *null : *found;
}

// "response1", "answer_b", "generation-0": an answer's field ends in its number or letter.
bool LooksLikeAnswer(const std::string& name) {
  std::string stem = absl::AsciiStrToLower(name);
  if (stem.empty()) return false;
  const char last = stem.back();
  if (!absl::ascii_isdigit(last) && last != 'a' && last != 'b') return false;
  stem.pop_back();
  while (!stem.empty() && (stem.back() == '-' || stem.back() == '_' || stem.back() == ' ')) stem.pop_back();
  for (const char* word : {"response", "answer", "generation", "completion", "output", "reply", "text", "candidate"}) {
    if (absl::EndsWith(stem, word)) return true;
  }
  return false;
}

struct Fields {
  std::string prompt, prompt_name, names[2], texts[2];
};

absl::StatusOr<Fields> FindFields(const Json& object, const char* where) {
  if (!object.is_object()) return Unexpected(absl::StrCat("an object in \"", where, "\""));
  Fields found;
  std::vector<std::string> answers, others;
  for (const auto& [name, value] : object.items()) {
    if (value.is_string()) (LooksLikeAnswer(name) ? answers : others).push_back(name);
  }
  if (answers.size() != 2) {
    return Unexpected(absl::StrCat("two answers in \"", where, "\" (as response1 and response2), found ",
                                   answers.size(), ": ", absl::StrJoin(answers, ", ")));
  }
  for (int i = 0; i < 2; ++i) {
    found.names[i] = answers[i];
    found.texts[i] = object[answers[i]].get<std::string>();
  }
  for (const char* name : {"prompt", "instruction", "question", "input", "request", "query", "context"}) {
    if (!At(object, name).is_string()) continue;
    found.prompt_name = name;
    break;
  }
  if (found.prompt_name.empty() && others.size() == 1) found.prompt_name = others[0];
  if (found.prompt_name.empty()) {
    return Unexpected(absl::StrCat("a prompt in \"", where, "\" (as prompt, instruction or question), found ",
                                   others.empty() ? "none" : absl::StrJoin(others, ", ")));
  }
  found.prompt = object[found.prompt_name].get<std::string>();
  return found;
}

// Which answer a label names: 0 or 1.
std::optional<int> Named(const std::string& label, const Fields& fields) {
  const std::string lower = absl::AsciiStrToLower(label);
  for (int i = 0; i < 2; ++i) {
    if (label == fields.names[i]) return i;
  }
  if (lower == "left" || lower == "first" || lower == "a" || lower == "1") return 0;
  if (lower == "right" || lower == "second" || lower == "b" || lower == "2") return 1;
  return std::nullopt;
}

constexpr size_t kMostWords = 6;        // of a text that may be a remark as well
constexpr size_t kMostLabelWords = 20;  // of what somebody chose

// "Both are the same", "aboutEqual": a text of few words, one of which says it. Prose may have these words, too, and
// mean anything.
bool SaysTie(const std::string& label, size_t most_words) {
  std::string text;
  for (size_t i = 0; i < label.size(); ++i) {
    if (i > 0 && absl::ascii_isupper(label[i]) && absl::ascii_islower(label[i - 1])) text += ' ';
    text += absl::ascii_isalnum(label[i]) ? absl::ascii_tolower(label[i]) : ' ';
  }
  static const std::set<std::string>* const ties = new std::set<std::string>{
      "tie", "tied", "ties", "equal", "equally", "equals", "same", "both", "bothgood", "bothbad", "neither"};
  const std::vector<std::string> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
  return words.size() <= most_words &&
         std::any_of(words.begin(), words.end(), [](const std::string& word) { return ties->count(word) > 0; });
}

// Which answer a label means: 0, 1, or 2 for neither.
std::optional<int> Meaning(const std::string& label, const Fields& fields) {
  const std::optional<int> named = Named(label, fields);
  return named || !SaysTie(label, kMostLabelWords) ? named : 2;
}

int Better(double first, double second) {
  return first == second ? 2 : first > second ? 0 : 1;
}

// A ranking in one of its three shapes, or a label that names an answer.
std::optional<int> Ranking(const Json& value, const Fields& fields) {
  if (value.is_string()) return Named(value.get<std::string>(), fields);
  double ranks[2] = {0, 0};
  bool seen[2] = {false, false};
  const auto note = [&](const Json& name, double rank) {
    if (!name.is_string()) return;
    const std::optional<int> which = Named(name.get<std::string>(), fields);
    if (!which) return;
    ranks[*which] = rank;
    seen[*which] = true;
  };
  if (value.is_array()) {
    for (size_t i = 0; i < value.size(); ++i) {
      if (value[i].is_object() && value[i].contains("value") && value[i].contains("rank") &&
          value[i]["rank"].is_number())
        note(value[i]["value"], value[i]["rank"].get<double>());
      else
        note(value[i], static_cast<double>(i));
    }
  } else if (value.is_object() && value.contains("value") && value.contains("rank") && value["value"].is_array() &&
             value["rank"].is_array() && value["value"].size() == value["rank"].size()) {
    for (size_t i = 0; i < value["value"].size(); ++i) {
      if (value["rank"][i].is_number()) note(value["value"][i], value["rank"][i].get<double>());
    }
  }
  if (!seen[0] || !seen[1]) return std::nullopt;
  return Better(-ranks[0], -ranks[1]);
}

std::string Name(const Json& who) {
  if (who.is_string()) return who.get<std::string>();
  if (who.is_number()) return who.dump();
  if (who.is_object()) {
    for (const char* key : {"email", "username", "id"}) {
      if (who.contains(key)) return Name(who[key]);
    }
  }
  return "";
}

v1::Comparison Made(const Fields& fields, int better, const std::string& rater) {
  v1::Comparison out;
  out.set_kind(v1::FEEDBACK_COMPARISON);
  out.mutable_prompt()->set_text(fields.prompt);
  out.mutable_first()->set_text(fields.texts[0]);
  out.mutable_second()->set_text(fields.texts[1]);
  out.mutable_first()->set_source("imported");
  out.mutable_second()->set_source("imported");
  out.set_preference(better == 0 ? v1::FIRST : better == 1 ? v1::SECOND : v1::TIE);
  out.set_rater(rater);
  return out;
}

// One person's answers to a record's questions.
struct Voice {
  std::map<std::string, Json> values;
};

absl::StatusOr<v1::Comparison> FromVoice(const Fields& fields, const std::string& rater, const Voice& voice) {
  std::optional<int> better;
  double ratings[2] = {0, 0};
  bool rated[2] = {false, false};
  std::string comment, tie;  // what says that it is one counts where nothing else judges: it may be a remark
  const auto remark = [&comment](const std::string& text) {
    absl::StrAppend(&comment, comment.empty() ? "" : "\n", text);
  };
  for (const auto& [question, value] : voice.values) {
    if (const std::optional<int> ranked = Ranking(value, fields); ranked && !better) {
      better = ranked;
      continue;
    }
    for (int i = 0; i < 2; ++i) {
      if (value.is_number() && absl::StartsWith(question, fields.names[i])) {
        ratings[i] = value.get<double>();
        rated[i] = true;
      }
    }
    if (!value.is_string()) continue;
    const auto text = value.get<std::string>();
    if (tie.empty() && SaysTie(text, kMostWords)) {
      tie = text;
    } else {
      remark(text);
    }
  }
  // One word is a verdict, more may be a remark on the ratings.
  const bool verdict = SaysTie(tie, 1);
  if (!better && !verdict && rated[0] && rated[1]) better = Better(ratings[0], ratings[1]);
  if (better && !tie.empty()) {
    remark(tie);
  } else if (!tie.empty()) {
    better = 2;
  }
  if (!better) return Unexpected("a ranking, a choice or two ratings of the answers among the responses");
  v1::Comparison out = Made(fields, *better, rater);
  out.set_comment(comment);
  if (rated[0] && rated[1]) {
    (*out.mutable_first_ratings())["rating"] = ratings[0];
    (*out.mutable_second_ratings())["rating"] = ratings[1];
  }
  return out;
}

bool Submitted(const Json& response) {
  const Json& status = At(response, "status");
  return status.is_null() || status == "submitted";
}

}  // namespace

absl::StatusOr<std::vector<v1::Comparison>> ParseArgilla(const Json& record) {
  const auto fields = FindFields(At(record, "fields"), "fields");
  if (!fields.ok()) return fields.status();
  std::map<std::string, Voice> voices;  // by person, in the order of their names
  const Json& responses = At(record, "responses");
  if (responses.is_array()) {  // a list of people, with their values
    for (const Json& response : responses) {
      if (!response.is_object() || !Submitted(response) || !response.contains("values")) continue;
      for (const auto& [question, value] : response["values"].items())
        voices[Name(response.value("user_id", Json()))].values[question] =
            value.is_object() && value.contains("value") && !value.contains("rank") ? value["value"] : value;
    }
  } else if (responses.is_object()) {  // questions, with people's values
    for (const auto& [question, list] : responses.items()) {
      if (!list.is_array()) return Unexpected(absl::StrCat("a list in \"responses.", question, "\""));
      for (const Json& response : list) {
        if (!response.is_object() || !Submitted(response) || !response.contains("value")) continue;
        voices[Name(response.value("user_id", Json()))].values[question] = response["value"];
      }
    }
  } else if (!responses.is_null()) {
    return Unexpected("a list or an object in \"responses\"");
  }
  std::vector<v1::Comparison> out;
  for (const auto& [rater, voice] : voices) {
    auto made = FromVoice(*fields, rater, voice);
    if (!made.ok()) return made.status();
    out.push_back(*std::move(made));
  }
  return out;
}

absl::StatusOr<std::vector<v1::Comparison>> ParseLabelStudio(const Json& task) {
  const bool whole = task.contains("data");
  auto fields = FindFields(whole ? task["data"] : task, whole ? "data" : "task");
  if (!fields.ok()) return fields.status();
  std::vector<v1::Comparison> out;
  if (!whole) {  // JSON-MIN: one annotation a line, its values beside the data
    std::optional<int> better;
    bool tied = false;
    for (const auto& [key, value] : task.items()) {
      if (key == fields->names[0] || key == fields->names[1] || key == fields->prompt_name) continue;
      const Json& label = value.is_object() ? At(value, "selected") : value;
      if (!label.is_string()) continue;
      if (!better) better = Named(label.get<std::string>(), *fields);
      tied = tied || SaysTie(label.get<std::string>(), kMostWords);
    }
    if (!better && tied) better = 2;
    if (!better) return Unexpected("a pairwise choice (left or right), found none");
    out.push_back(Made(*fields, *better, Name(task.value("annotator", Json()))));
    return out;
  }
  const Json& annotations = At(task, task.contains("annotations") ? "annotations" : "completions");
  if (!annotations.is_array()) return Unexpected("a list in \"annotations\"");
  for (const Json& annotation : annotations) {
    if (!annotation.is_object() || At(annotation, "was_cancelled") == true) continue;
    if (!At(annotation, "result").is_array()) return Unexpected("a list in \"annotations[].result\"");
    std::optional<int> better;
    std::string comment;
    for (const Json& result : annotation["result"]) {
      if (!result.is_object() || !At(result, "value").is_object()) continue;
      const Json& value = result["value"];
      const Json& type = At(result, "type");
      if (type == "pairwise" && value.contains("selected")) {
        better = Meaning(Name(value["selected"]), *fields);
        // "left" is the first that the tag compares, when its objects are named as the data is.
        const std::vector<std::string> objects = absl::StrSplit(Name(At(result, "to_name")), ',');
        if (better && *better < 2 && objects.size() == 2 && objects[0] == fields->names[1] &&
            objects[1] == fields->names[0])
          better = 1 - *better;
      } else if (type == "choices" && value.contains("choices") && value["choices"].is_array() && !better &&
                 !value["choices"].empty()) {
        better = Meaning(Name(value["choices"][0]), *fields);
        // Both answers are ticked.
        if (better && value["choices"].size() == 2 && Meaning(Name(value["choices"][1]), *fields) == 1 - *better)
          better = 2;
      } else if (type == "textarea" && value.contains("text")) {
        const Json& text = value["text"];
        comment = text.is_array() && !text.empty() ? Name(text[0]) : Name(text);
      }
    }
    if (!better) return Unexpected("a pairwise choice in the annotation's result, found none");
    out.push_back(Made(*fields, *better, Name(annotation.value("completed_by", Json()))));
    out.back().set_comment(comment);
  }
  return out;
}

}  // namespace rlhf::cli
