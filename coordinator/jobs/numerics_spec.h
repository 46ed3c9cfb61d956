// What a specification says about numerics and adapters: deterministic jobs and LoRA.
#pragma once

#include <vector>

#include "rlhf/v1/job.pb.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// Completes the adapters' defaults and appends what is wrong, for the job itself and for every stage of a pipeline.
void CheckNumerics(v1::JobSpec* spec, std::vector<v1::SpecProblem>* problems);

}  // namespace rlhf::coordinator
