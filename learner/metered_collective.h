// A collective that tells how long its sums took; everything else is passed on.
#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "learner/collective.h"

namespace rlhf::learner {

// `waited` is told, on the thread of the call, how long AllReduceSum or a Pending's Wait took. Its own pending sums
// must not outlive it.
std::unique_ptr<Collective> WithTimes(std::unique_ptr<Collective> collective,
                                      std::function<void(absl::Duration)> waited);

}  // namespace rlhf::learner
