// What a thread waits for that others bring about: they wake it, and it looks.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::learner {

// Thread-safe; several may wait.
class Wakeups {
 public:
  void Wake();
  // Blocks until done() is true, which is asked at once, after each wake-up, and after every `slice` without one, never
  // with a lock held. False: it was not at the clock's `deadline`.
  bool Await(absl::FunctionRef<bool()> done, absl::Duration slice, const Clock& clock, absl::Duration deadline);

 private:
  absl::Mutex mu_;
  uint64_t count_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace rlhf::learner
