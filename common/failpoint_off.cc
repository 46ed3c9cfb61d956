// Failpoints of the released binaries.
#include "common/failpoint.h"

namespace rlhf {

absl::Status HitFailpoint(const char*) {
  return absl::OkStatus();
}
void UseFailpointsOf(const std::string&, const std::string&) {}

}  // namespace rlhf
