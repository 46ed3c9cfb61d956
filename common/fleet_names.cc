#include "common/fleet_names.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace rlhf {

std::string FleetServerName(const std::string& role) {
  const std::string fleet = "fleet.rlhf.internal";
  return role.empty() ? fleet : absl::StrCat(absl::StrReplaceAll(role, {{"_", "-"}}), ".", fleet);
}

bool SpeaksFor(const std::string& certificate_instance, const std::string& instance) {
  absl::string_view rest = instance;
  if (certificate_instance.empty() || !absl::ConsumePrefix(&rest, certificate_instance)) return false;
  return rest.empty() || (rest.size() > 1 && rest.front() == '-');
}

}  // namespace rlhf
