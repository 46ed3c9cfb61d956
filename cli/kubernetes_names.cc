#include "cli/kubernetes_names.h"

#include <regex>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

absl::Status Check(const char* flag, const std::string& value, size_t longest, const char* pattern,
                   const char* expected) {
  if (value.size() <= longest && std::regex_match(value, std::regex(pattern))) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(flag, ": expected ", expected, ", found \"", absl::Utf8SafeCHexEscape(value.substr(0, 300)), "\""));
}

}  // namespace

absl::Status CheckNamespace(const std::string& name_space) {
  return Check("--namespace", name_space, 63, "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
               "at most 63 small letters, digits and inner dashes (a namespace of Kubernetes)");
}

absl::Status CheckSecretName(const std::string& name) {
  return Check("--secret-name", name, 253, "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
               "at most 253 small letters, digits, and inner dashes and dots (a name of Kubernetes)");
}

absl::Status CheckOwnFleet(const OwnFleet& fleet) {
  RLHF_RETURN_IF_ERROR(CheckNamespace(fleet.name_space));
  RLHF_RETURN_IF_ERROR(Check("--registry", fleet.registry, 255,
                             "[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?(:[0-9]+)?(/[a-z0-9]([-a-z0-9._]*[a-z0-9])?)*",
                             "HOST[:PORT][/PATH…] (where images are, without one's name)"));
  return Check("--tag", fleet.tag, 128, "[A-Za-z0-9_][-A-Za-z0-9_.]*",
               "at most 128 letters, digits, dashes, dots and underscores (an image's tag)");
}

}  // namespace rlhf::cli
