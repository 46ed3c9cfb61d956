// Which sample a lease is of.
#pragma once

#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"

namespace rlhf::artifact {

// The index-th sample of the lease's prompt.
v1::SampleId SampleIdOf(const v1::PromptLease& lease, int index);

}  // namespace rlhf::artifact
