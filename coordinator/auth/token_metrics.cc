#include "coordinator/auth/token_metrics.h"

#include <prometheus/gauge.h>

namespace rlhf::coordinator {

void ExportAdminExpiry(const Tokens* tokens, MetricsRegistry* metrics) {
  prometheus::Gauge& gauge = metrics->Gauge("rlhf_admin_token_expiry_timestamp_seconds",
                                            "Until when a token is admin of all projects; 0 when none is.");
  metrics->OnCollect([tokens, &gauge] {
    const absl::Time until = tokens->AdminUntil();
    gauge.Set(until == absl::InfinitePast() ? 0 : absl::ToDoubleSeconds(until - absl::UnixEpoch()));
  });
}

}  // namespace rlhf::coordinator
