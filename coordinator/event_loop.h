// The coordinator's one logic thread. Every manager is used on it only, so logic needs no locks; gRPC adapters post to
// it.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::coordinator {

// How a handler answers: exactly once, on the loop or on the store's thread, after what it wrote is durable.
template <typename T>
using Done = absl::AnyInvocable<void(absl::StatusOr<T>)>;

class EventLoop {
 public:
  virtual ~EventLoop() = default;
  virtual void Post(absl::AnyInvocable<void()> fn) = 0;                             // any thread
  virtual void PostAfter(absl::Duration delay, absl::AnyInvocable<void()> fn) = 0;  // any thread; fires on the loop
  virtual const Clock& clock() const = 0;
  // A thread that runs until Stop; Stop runs what is queued (not what is delayed) and joins.
  static std::unique_ptr<EventLoop> StartThread(Clock* clock);
  virtual void Stop() = 0;
};

// Runs blocking work (hashing, reading data files) off the loop on a few threads; `then` should Post back.
class Background {
 public:
  virtual ~Background() = default;
  virtual void Run(absl::AnyInvocable<void()> fn) = 0;
  virtual size_t waiting() const { return 0; }  // what has not begun; any thread
  static std::unique_ptr<Background> StartThreads(int threads);
};

}  // namespace rlhf::coordinator
