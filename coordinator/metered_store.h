// A StateStore that measures how long commits take (rlhf_store_commit_seconds), around any other.
#pragma once

#include <atomic>
#include <memory>

#include "common/clock.h"
#include "common/metrics.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

// `failed` becomes true with the first write that could not be made durable: none will be after it.
std::unique_ptr<StateStore> WithCommitMetrics(std::unique_ptr<StateStore> store, MetricsRegistry* metrics,
                                              const Clock* clock, std::atomic<bool>* failed);

}  // namespace rlhf::coordinator
