#include "common/end_by.h"

#include <unistd.h>

#include <utility>

#include "common/log.h"

namespace rlhf {

EndBy::EndBy(absl::Duration after, int code, std::function<std::string()> why)
    : thread_([this, after, code, why = std::move(why)] {
        absl::Duration wait = after;
        while (!over_.WaitForNotificationWithTimeout(wait)) {
          if (const std::string reason = why(); !reason.empty()) {
            spdlog::critical("{}: ending at once", reason);
            spdlog::default_logger()->flush();
            _exit(code);
          }
          wait = absl::Seconds(1);
        }
      }) {}
EndBy::~EndBy() {
  over_.Notify();
  thread_.join();
}

}  // namespace rlhf
