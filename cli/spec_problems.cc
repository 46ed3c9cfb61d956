#include "cli/spec_problems.h"

#include <cctype>
#include <optional>
#include <vector>

#include <yaml-cpp/yaml.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace rlhf::cli {
namespace {

// min_ranks and minRanks are the same key.
std::string KeyForm(const std::string& key) {
  std::string form;
  for (const char c : key) {
    if (c != '_' && c != '-') form.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  }
  return form;
}

// Goes one step down: to the value, with the line of its key or of the item. False when there is none.
bool Descend(const std::string& step, YAML::Node* node, int* line) {
  size_t index = 0;
  if (node->IsSequence()) {
    if (!absl::SimpleAtoi(step, &index) || index >= node->size()) return false;
    const YAML::Node item = (*node)[index];
    *line = item.Mark().line + 1;
    node->reset(item);
    return true;
  }
  if (!node->IsMap()) return false;
  for (const auto& entry : *node) {
    if (!entry.first.IsScalar() || KeyForm(entry.first.Scalar()) != KeyForm(step)) continue;
    *line = entry.first.Mark().line + 1;
    const YAML::Node value = entry.second;
    node->reset(value);
    return true;
  }
  return false;
}

// 0: of the whole file.
int LineOf(const std::string& yaml, const std::string& field) {
  int line = 0;
  try {
    YAML::Node node = YAML::Load(yaml);
    const std::string path = absl::StrReplaceAll(field, {{"[", "."}, {"]", ""}});
    for (const absl::string_view step : absl::StrSplit(path, '.', absl::SkipEmpty())) {
      if (!Descend(std::string(step), &node, &line)) break;
    }
  } catch (const YAML::Exception&) {
    return 0;
  }
  return line;
}

}  // namespace

std::string ProblemText(const std::string& file, const std::string& yaml, const v1::SpecProblem& problem) {
  const int line = LineOf(yaml, problem.field());
  absl::string_view text = problem.problem();
  absl::ConsumePrefix(&text, absl::StrCat(problem.field(), ": "));  // some say it themselves
  return absl::StrCat(file, line > 0 ? absl::StrCat(":", line) : "", ": ", problem.field(),
                      problem.field().empty() ? "" : ": ", text);
}

}  // namespace rlhf::cli
