// The end of a process that is not to wait for what may never come back: a call into a volume that hangs, a forward
// pass that takes minutes.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace rlhf {

class EndBy {
 public:
  // `after` this, and from then on once a second, asks `why` on a thread of its own, and where it is not empty logs it
  // and ends the process at once with `code`: no destructor runs, so nothing may be left to be written.
  EndBy(absl::Duration after, int code, std::function<std::string()> why);
  ~EndBy();  // the process ends as it would
  EndBy(const EndBy&) = delete;
  EndBy& operator=(const EndBy&) = delete;

 private:
  absl::Notification over_;
  std::thread thread_;
};

}  // namespace rlhf
