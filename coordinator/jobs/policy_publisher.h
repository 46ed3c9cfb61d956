// What follows when a gate approves a policy: its model card, its alias, the audit record. Loop thread only.
#pragma once

#include <functional>
#include <string>

#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

// Whether all of it is durable for this gate: the pipeline's result names the card.
bool IsPublished(const v1::Job& pipeline, const v1::GateRow& gate);
// `done` runs on the loop. Doing it twice, after a restart in the middle, is harmless: the same card's bytes may differ
// by their date only, and the alias points to the same policy.
void PublishPolicy(JobHost* host, const std::string& job_id, const v1::GateRow& gate,
                   const std::function<void(const absl::Status&)>& done);

}  // namespace rlhf::coordinator
