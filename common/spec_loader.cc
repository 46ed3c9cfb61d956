#include "common/spec_loader.h"

#include <algorithm>
#include <cctype>

#include <yaml-cpp/yaml.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/yaml_to_message.h"

namespace rlhf {
namespace {

std::string Normalized(const std::string& name) {
  std::string result;
  for (const char c : name) {
    result.push_back(c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  }
  return result;
}

// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours count one each.
size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

// Longer names are nobody's slip of the finger, and the distance is quadratic.
constexpr size_t kMaxNameLength = 128;

}  // namespace

std::string NearestName(const std::string& name, const std::vector<std::string>& candidates) {
  if (name.size() > kMaxNameLength) return "";
  const std::string wanted = Normalized(name);
  size_t best_distance = std::max<size_t>(1, wanted.size() / 3) + 1;
  std::string best;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(wanted, Normalized(candidate));
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

absl::Status ParseYaml(const std::string& yaml, const std::string& file_name,
                       const std::map<std::string, std::string>& variables, google::protobuf::Message* message) {
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(yaml);
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(file_name, ": expected one YAML document, found ", documents.size(), " (separated by ---)"));
    }
    return YamlToMessage(file_name, variables).Fill(documents.empty() ? YAML::Node() : documents.front(), message);
  } catch (const YAML::Exception& error) {
    if (error.mark.is_null()) return absl::InvalidArgumentError(absl::StrCat(file_name, ": not YAML: ", error.msg));
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, ":", error.mark.line + 1, ":", error.mark.column + 1, ": not YAML: ", error.msg));
  }
}

absl::Status LoadYamlFile(const std::string& path, const std::map<std::string, std::string>& variables,
                          google::protobuf::Message* message) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  return ParseYaml(*text, path, variables, message);
}

}  // namespace rlhf
