#include "common/stuck_watch.h"

#include "absl/strings/str_cat.h"

namespace rlhf {

std::string StuckWatch::StuckBecause() const {
  const int64_t since = since_ns_;
  if (since == kIdle || patience_ <= absl::ZeroDuration()) return "";
  const absl::Duration stood = clock_->Now() - absl::Nanoseconds(since);
  if (stood <= patience_) return "";
  return absl::StrCat("the computing thread has stood still for ", absl::ToInt64Seconds(stood),
                      " s (--stuck-after-seconds)");
}

}  // namespace rlhf
