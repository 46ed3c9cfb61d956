// Keeps a process reachable whose descriptors somebody uses up by opening connections.
#pragma once

#include <cstdint>

#include "common/metrics.h"

namespace rlhf {

// From now on no connection is taken that would leave the process few descriptors for its files and its own
// connections: an eighth of its limit (ulimit -n) as it is now, 64 to 1024 of them. Such a connection is closed at
// once, whoever it is from; those that exist go on. gRPC before 1.58 stops listening for good when accept() finds no
// descriptor left. Any thread.
void LimitConnections();

int64_t ConnectionsRefused();  // since the start; any thread
// As rlhf_connections_refused_total; again for the same registry changes nothing.
void ExportConnectionsRefused(MetricsRegistry* metrics);

}  // namespace rlhf
