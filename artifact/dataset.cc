#include "artifact/dataset.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "artifact/prompt.h"

namespace rlhf::artifact {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// One line's object, with errors that name the line.
class Line {
 public:
  Line(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  absl::Status Bad(absl::string_view problem) const {
    return absl::InvalidArgumentError(absl::StrCat(where_, ": ", problem));
  }
  void Text(const char* key, bool required, std::string* out) {
    known_.push_back(key);
    if (!json_.contains(key)) {
      if (required) Fail(absl::StrCat("expected the key \"", key, "\", found none"));
      return;
    }
    if (!json_[key].is_string())
      return Fail(absl::StrCat("\"", key, "\": expected a string, found ", json_[key].type_name()));
    *out = json_[key].get<std::string>();
  }
  // "prompt", "messages", or both.
  void Prompt(std::string* prompt, std::vector<ChatMessage>* messages) {
    known_.push_back("messages");
    if (json_.contains("messages")) Messages(json_["messages"], messages);
    Text("prompt", messages->empty(), prompt);
    if (!json_.contains("prompt")) *prompt = ShownText(*messages);
  }
  void Number(const char* key, double* out) {
    known_.push_back(key);
    if (!json_.contains(key)) return;
    if (!json_[key].is_number())
      return Fail(absl::StrCat("\"", key, "\": expected a number, found ", json_[key].type_name()));
    *out = json_[key].get<double>();
  }
  void Flag(const char* key, bool* out) {
    known_.push_back(key);
    if (!json_.contains(key)) return;
    if (!json_[key].is_boolean())
      return Fail(absl::StrCat("\"", key, "\": expected true or false, found ", json_[key].type_name()));
    *out = json_[key].get<bool>();
  }
  void TagMap(const char* key, Tags* out) {
    known_.push_back(key);
    if (!json_.contains(key)) return;
    if (!json_[key].is_object())
      return Fail(absl::StrCat("\"", key, "\": expected an object of strings, found ", json_[key].type_name()));
    for (const auto& [name, value] : json_[key].items()) {
      if (!value.is_string())
        return Fail(absl::StrCat("\"", key, ".", name, "\": expected a string, found ", value.type_name()));
      (*out)[name] = value.get<std::string>();
    }
  }
  void NumberMap(const char* key, std::map<std::string, double>* out) {
    known_.push_back(key);
    if (!json_.contains(key)) return;
    if (!json_[key].is_object())
      return Fail(absl::StrCat("\"", key, "\": expected an object of numbers, found ", json_[key].type_name()));
    for (const auto& [name, value] : json_[key].items()) {
      if (!value.is_number())
        return Fail(absl::StrCat("\"", key, ".", name, "\": expected a number, found ", value.type_name()));
      (*out)[name] = value.get<double>();
    }
  }
  void PairMap(const char* key, std::map<std::string, std::pair<double, double>>* out) {
    known_.push_back(key);
    if (!json_.contains(key)) return;
    if (!json_[key].is_object())
      return Fail(absl::StrCat("\"", key, "\": expected an object, found ", json_[key].type_name()));
    for (const auto& [name, value] : json_[key].items()) {
      if (!value.is_array() || value.size() != 2 || !value[0].is_number() || !value[1].is_number())
        return Fail(absl::StrCat("\"", key, ".", name, "\": expected two numbers, of the chosen and the rejected"));
      (*out)[name] = {value[0].get<double>(), value[1].get<double>()};
    }
  }
  bool lacks(const char* key) const { return !json_.contains(key); }
  absl::Status Finish(bool allow_unknown = false) {
    if (!status_.ok() || allow_unknown) return status_;
    for (const auto& item : json_.items()) {
      const std::string& key = item.key();
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      const auto nearest = std::min_element(
          known_.begin(), known_.end(),
          [&](const std::string& a, const std::string& b) { return EditDistance(a, key) < EditDistance(b, key); });
      const std::string hint =
          EditDistance(*nearest, key) <= 3 ? absl::StrCat("; did you mean \"", *nearest, "\"?") : "";
      return Bad(absl::StrCat("unknown key \"", key, "\"", hint, " (allowed: ", absl::StrJoin(known_, ", "), ")"));
    }
    return absl::OkStatus();
  }

  void Fail(const std::string& problem) {
    if (status_.ok()) status_ = Bad(problem);
  }

 private:
  void Messages(const Json& list, std::vector<ChatMessage>* out) {
    if (!list.is_array() || list.empty() || list.size() > 1000)
      return Fail("\"messages\": expected an array of 1 to 1000 {\"role\", \"content\"}");
    for (const Json& item : list) {
      const bool good = item.is_object() && item.size() == 2 && item.contains("role") && item.contains("content") &&
                        item["role"].is_string() && item["content"].is_string() &&
                        !item["role"].get_ref<const std::string&>().empty();
      if (!good) {
        return Fail(absl::StrCat("\"messages[", out->size(),
                                 "]\": expected {\"role\": text, \"content\": text}, and no other key"));
      }
      out->push_back({item["role"].get<std::string>(), item["content"].get<std::string>()});
    }
  }
  const Json& json_;
  std::string where_;
  std::vector<std::string> known_;
  absl::Status status_;
};

// What errors call it: its own name, for where the service keeps it is nobody else's matter; of an artifact its digest.
std::string NameOf(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  const fs::path whole = normal.has_filename() ? normal : normal.parent_path();
  const std::string name = whole.filename().string();
  return whole.parent_path().filename() == "sha256" ? absl::StrCat("sha256:", name) : name;
}

absl::StatusOr<std::vector<std::string>> FilesOf(const std::string& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return std::vector<std::string>{path};
  if (!fs::is_directory(path, error))
    return absl::NotFoundError(absl::StrCat(NameOf(path), ": expected a data file or folder, found none"));
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    if (entry.is_regular_file() && entry.path().extension() == ".jsonl") files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  if (files.empty())
    return absl::InvalidArgumentError(absl::StrCat(NameOf(path), ": expected at least one .jsonl file, found none"));
  return files;
}

template <typename Record>
using Parse = std::function<absl::Status(Line&, int64_t number, Record*)>;

template <typename Record>
absl::Status ForEach(const std::string& path, const Parse<Record>& parse, absl::FunctionRef<absl::Status(Record)> fn) {
  auto files = FilesOf(path);
  if (!files.ok()) return files.status();
  bool any = false;
  for (const std::string& file : *files) {
    std::ifstream in(file);
    if (!in) return absl::PermissionDeniedError(absl::StrCat("cannot read ", NameOf(file), " of ", NameOf(path)));
    std::string text;
    for (int64_t number = 1; std::getline(in, text); ++number) {
      if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
      const std::string where = absl::StrCat(fs::path(file).filename().string(), ":", number);
      const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (!json.is_object())
        return absl::InvalidArgumentError(absl::StrCat(where, ": expected a JSON object on the line"));
      Line line(json, where);
      Record record;
      if (absl::Status status = parse(line, number, &record); !status.ok()) return status;
      any = true;
      if (absl::Status status = fn(std::move(record)); !status.ok()) return status;
    }
  }
  if (!any) return absl::InvalidArgumentError(absl::StrCat(NameOf(path), ": expected at least one record, found none"));
  return absl::OkStatus();
}

template <typename Record>
absl::StatusOr<std::vector<Record>> ReadAll(const std::string& path, const Parse<Record>& parse) {
  std::vector<Record> out;
  const absl::Status status = ForEach<Record>(path, parse, [&out](Record record) {
    out.push_back(std::move(record));
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return out;
}

absl::Status ParseSample(Line& line, int64_t, SampleRecord* record) {
  double index = 0;
  line.Text("id", false, &record->id);
  line.Prompt(&record->prompt, &record->messages);
  line.Text("response", true, &record->response);
  line.Text("reference", false, &record->reference);
  line.Text("category", false, &record->category);
  line.Text("finish_reason", false, &record->finish_reason);
  line.Number("index", &index);
  record->index = static_cast<int>(index);
  line.TagMap("tags", &record->tags);
  line.NumberMap("components", &record->components);
  return line.Finish(/*allow_unknown=*/true);
}

}  // namespace

absl::StatusOr<std::vector<SftRecord>> ReadSftData(const std::string& path) {
  return ReadAll<SftRecord>(path, [](Line& line, int64_t, SftRecord* record) {
    line.Prompt(&record->prompt, &record->messages);
    // A conversation may end with the answer.
    const bool answered = !record->messages.empty() && record->messages.back().role == "assistant";
    line.Text("response", !answered, &record->response);
    if (answered) {
      if (!record->response.empty())
        line.Fail("\"response\": the last of \"messages\" is an answer already; expected one of the two");
      record->response = record->messages.back().content;
      record->messages.pop_back();
      if (record->messages.empty()) line.Fail("\"messages\": expected a question before the answer");
      if (line.lacks("prompt")) record->prompt = ShownText(record->messages);
    }
    line.Text("category", false, &record->category);
    line.TagMap("tags", &record->tags);
    return line.Finish();
  });
}

absl::StatusOr<std::vector<PromptRecord>> ReadPromptData(const std::string& path) {
  return ReadAll<PromptRecord>(path, [](Line& line, int64_t number, PromptRecord* record) {
    record->id = std::to_string(number);
    line.Prompt(&record->prompt, &record->messages);
    line.Text("reference", false, &record->reference);
    line.Text("id", false, &record->id);
    line.Text("category", false, &record->category);
    line.TagMap("tags", &record->tags);
    return line.Finish();
  });
}

absl::StatusOr<std::vector<ChatMessage>> ParseMessages(absl::string_view text, const std::string& name) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  const Json object = json.is_array() ? Json{{"messages", json}} : json;
  if (!object.is_object() || !object.contains("messages"))
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": expected [{\"role\", \"content\"}, …] or {\"messages\": […]}"));
  Line line(object, name);
  std::string prompt;
  std::vector<ChatMessage> out;
  line.Prompt(&prompt, &out);
  if (absl::Status status = line.Finish(); !status.ok()) return status;
  return out;
}

absl::StatusOr<std::vector<ComparisonRecord>> ReadComparisonData(const std::string& path) {
  return ReadAll<ComparisonRecord>(path, [](Line& line, int64_t, ComparisonRecord* record) {
    line.Prompt(&record->prompt, &record->messages);
    line.Text("chosen", true, &record->chosen);
    line.Text("rejected", true, &record->rejected);
    line.Flag("tie", &record->tie);
    line.Number("margin", &record->margin);
    line.Number("strength", &record->strength);
    line.Text("category", false, &record->category);
    line.TagMap("tags", &record->tags);
    line.PairMap("ratings", &record->ratings);
    return line.Finish();
  });
}

absl::StatusOr<std::vector<SampleRecord>> ReadSampleData(const std::string& path) {
  return ReadAll<SampleRecord>(path, ParseSample);
}

absl::Status ForEachSample(const std::string& path, absl::FunctionRef<absl::Status(SampleRecord)> fn) {
  return ForEach<SampleRecord>(path, ParseSample, fn);
}

}  // namespace rlhf::artifact
