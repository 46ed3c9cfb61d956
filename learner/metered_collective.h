// A collective that tells when it is called and how long its sums took; everything else is passed on.
#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "learner/collective.h"

namespace rlhf::learner {

// On the thread of the call: `called` before each but Abort, also before a look at aborted(), and `waited` is told how
// long AllReduceSum or a Pending's Wait took. Its own pending sums must not outlive it.
std::unique_ptr<Collective> WithTimes(std::unique_ptr<Collective> collective,
                                      std::function<void(absl::Duration)> waited, std::function<void()> called);

}  // namespace rlhf::learner
