#include "cli/check/evidence.h"

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr char kSteps[] = "steps-", kAccepted[] = "accepted-", kEnd[] = ".jsonl";

bool ParseStep(const nlohmann::json& json, StepLine* line) {
  for (const char* key : {"epoch", "rank", "world", "step"}) {
    if (!json.contains(key) || !json[key].is_number_integer()) return false;
  }
  line->event = json.value("event", "");
  line->job = json.value("job", "");
  line->epoch = json["epoch"].get<uint64_t>();
  line->rank = json["rank"].get<int>();
  line->world = json["world"].get<int>();
  line->step = json["step"].get<int64_t>();
  line->lineage = json.value("lineage", uint64_t{0});
  line->weights = json.value("weights", "");
  line->metrics = json.value("metrics", "");
  line->batch = json.value("batch", "");
  line->state = json.value("state", "");
  line->samples = json.value("samples", std::vector<std::string>());
  return !line->event.empty() && !line->job.empty();
}

}  // namespace

absl::StatusOr<Evidence> ReadEvidence(const std::string& dir) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) names.push_back(entry.path().filename());
  if (error) return absl::NotFoundError(absl::StrCat("--evidence ", dir, ": ", error.message()));
  std::sort(names.begin(), names.end());
  Evidence evidence;
  bool any = false;
  for (const std::string& name : names) {
    const bool steps = absl::StartsWith(name, kSteps);
    if (!absl::EndsWith(name, kEnd) || (!steps && !absl::StartsWith(name, kAccepted))) continue;
    any = true;
    const size_t prefix = steps ? sizeof(kSteps) - 1 : sizeof(kAccepted) - 1;
    const std::string source = name.substr(prefix, name.size() - prefix - (sizeof(kEnd) - 1));
    RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile(absl::StrCat(dir, "/", name)));
    std::vector<std::string> lines = absl::StrSplit(text, '\n');
    lines.pop_back();  // after the last line's end: nothing, or a line that was cut
    for (size_t i = 0; i < lines.size(); ++i) {
      const nlohmann::json json = nlohmann::json::parse(lines[i], nullptr, /*allow_exceptions=*/false);
      bool good = json.is_object();
      if (good && steps) {
        StepLine line;
        good = ParseStep(json, &line);
        line.source = source;
        evidence.steps.push_back(std::move(line));
      } else if (good) {
        good = json.contains("job") && json["job"].is_string() && json.contains("sample") && json["sample"].is_string();
        if (good) evidence.accepted.push_back({source, json["job"], json["sample"]});
      }
      if (!good) {
        return absl::InvalidArgumentError(
            absl::StrCat(dir, "/", name, ":", i + 1, ": expected a line of a step log or of accepted samples, found \"",
                         lines[i].substr(0, 80), "\""));
      }
    }
  }
  if (!any) {
    return absl::NotFoundError(
        absl::StrCat("--evidence ", dir, ": expected ", kSteps, "INSTANCE", kEnd, " or ", kAccepted, "INSTANCE", kEnd,
                     ", found neither; learners and rollout workers write them to their --evidence-dir"));
  }
  return evidence;
}

}  // namespace rlhf::cli
