// The plain HTTP endpoint of metrics.h, with a liveness of its own.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/metrics.h"

namespace rlhf {

// As HttpEndpoint::Start; /healthz answers 503 with what `alive` returns, when that is not empty: the process should
// then be started again.
absl::StatusOr<std::unique_ptr<HttpEndpoint>> StartHttpEndpoint(const std::string& address, MetricsRegistry* metrics,
                                                                std::function<std::string()> ready,
                                                                std::function<std::string()> alive);

}  // namespace rlhf
