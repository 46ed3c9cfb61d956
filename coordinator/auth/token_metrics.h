// Metrics of the API's tokens.
#pragma once

#include "common/metrics.h"
#include "coordinator/auth/tokens.h"

namespace rlhf::coordinator {

// rlhf_admin_token_expiry_timestamp_seconds, from the next collection on. `tokens` outlives the last one.
void ExportAdminExpiry(const Tokens* tokens, MetricsRegistry* metrics);

}  // namespace rlhf::coordinator
