#include "common/start_watch.h"

#include <unistd.h>

#include <utility>

#include "common/clock.h"
#include "common/log.h"
#include "common/process.h"

namespace rlhf {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(100);

}  // namespace

StartWatch::StartWatch(absl::Duration says_after)
    : says_after_(says_after), since_(Clock::Real()->Now()), thread_([this] { Run(); }) {}

StartWatch::~StartWatch() {
  over_.Notify();
  thread_.join();
}

void StartWatch::Next(std::string what) {
  absl::MutexLock lock(&mu_);
  if (said_) spdlog::info("{} answers", what_);
  what_ = std::move(what);
  since_ = Clock::Real()->Now();
  said_ = false;
}

void StartWatch::Run() {
  while (!over_.WaitForNotificationWithTimeout(kLookEvery)) {
    const bool told = TakeTerminationSignal() != 0;
    absl::MutexLock lock(&mu_);
    const bool waits = Clock::Real()->Now() - since_ >= says_after_ && !what_.empty();
    if (told) {
      spdlog::info("asked to stop while it started{}", waits ? " and " + what_ + " did not answer" : "");
      spdlog::default_logger()->flush();
      _exit(0);
    }
    if (!waits || std::exchange(said_, true)) continue;
    spdlog::warn("waiting for {}: it does not answer", what_);
  }
}

}  // namespace rlhf
