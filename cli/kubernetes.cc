#include "cli/kubernetes.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"
#include "cli/deploy_files.h"

namespace rlhf::cli {

std::string SecretManifest(const std::string& name, const std::string& name_space,
                           const std::map<std::string, std::string>& data) {
  std::string text =
      absl::StrCat("---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: ", name, "\n  namespace: ", name_space,
                   "\n  labels:\n    app.kubernetes.io/part-of: rlhf\ntype: Opaque\ndata:\n");
  for (const auto& [key, value] : data) absl::StrAppend(&text, "  ", key, ": ", absl::Base64Escape(value), "\n");
  return text;
}

namespace {

constexpr size_t kLongestJobName = 34;  // "rlhf-NAME-01234567-rollout-0-1234" has 63 characters at most

std::string ConfigMap(const std::string& name, const OwnFleet& fleet, const std::string& key, const std::string& text) {
  std::string manifest = absl::StrCat("---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: ", name,
                                      "\n  namespace: ", fleet.name_space,
                                      "\n  labels:\n    app.kubernetes.io/part-of: rlhf\ndata:\n  ", key, ": |\n");
  for (const absl::string_view line : absl::StrSplit(absl::StripTrailingAsciiWhitespace(text), '\n'))
    absl::StrAppend(&manifest, line.empty() ? "" : "    ", line, "\n");
  return manifest;
}

}  // namespace

std::string FleetName(const std::string& job, const std::string& job_yaml, const std::string& request_id) {
  std::string name = absl::AsciiStrToLower(job);
  for (char& c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c))) c = '-';
  }
  name = name.substr(name.find_first_not_of('-') == std::string::npos ? name.size() : name.find_first_not_of('-'));
  name.resize(std::min(name.size(), kLongestJobName));
  const std::string digest = artifact::Sha256Hex(absl::StrCat(request_id.size(), "/", request_id, job_yaml));
  return absl::StrCat(name.empty() ? "job" : name, "-", digest.substr(0, 8));
}

std::string OwnFleetManifest(const std::string& name, const std::string& job_yaml, const OwnFleet& fleet) {
  const std::string own = absl::StrCat("rlhf-", name);
  const auto count = [](int n) { return absl::StrCat("          parallelism: ", n, "\n          completions: ", n); };
  const std::string set = absl::StrReplaceAll(
      kJobSetYaml,
      {{"  name: rlhf-own-fleet\n", absl::StrCat("  name: ", own, "\n  namespace: ", fleet.name_space, "\n")},
       {"  suspend: true\n", ""},
       {count(2), count(fleet.learners)},
       {count(4), count(fleet.rollout_workers)},
       {"name: rlhf-own-fleet-job}", absl::StrCat("name: ", own, "-job}")},
       {"configMap: {name: rlhf-learner}", absl::StrCat("configMap: {name: ", own, "-learner}")},
       {"configMap: {name: rlhf-rollout-worker}", absl::StrCat("configMap: {name: ", own, "-rollout-worker}")},
       {"value: rlhf-learner-own-", absl::StrCat("value: rlhf-learner-", name, "-")},
       {"value: rlhf-rollout-worker-own-", absl::StrCat("value: rlhf-rollout-worker-", name, "-")},
       {"image: rlhf-learner", absl::StrCat("image: ", fleet.registry, "/learner:", fleet.tag)},
       {"image: rlhf-rollout-worker", absl::StrCat("image: ", fleet.registry, "/rollout-worker:", fleet.tag)},
       {"image: rlhf-cli", absl::StrCat("image: ", fleet.registry, "/cli:", fleet.cli_tag)}});
  return absl::StrCat(ConfigMap(own + "-job", fleet, "job.yaml", job_yaml),
                      ConfigMap(own + "-learner", fleet, "learner.toml", kLearnerToml),
                      ConfigMap(own + "-rollout-worker", fleet, "rollout-worker.toml", kRolloutWorkerToml), "---\n",
                      set);
}

}  // namespace rlhf::cli
