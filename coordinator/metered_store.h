// A StateStore that measures how long commits take (rlhf_store_commit_seconds), around any other.
#pragma once

#include <memory>

#include "common/clock.h"
#include "common/metrics.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

std::unique_ptr<StateStore> WithCommitMetrics(std::unique_ptr<StateStore> store, MetricsRegistry* metrics,
                                              const Clock* clock);

}  // namespace rlhf::coordinator
