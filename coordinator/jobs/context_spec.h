// Jobs that ask a model for more tokens than its context holds, found before anything waits for workers.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "coordinator/artifacts.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// Of a completed specification: appends where `max_new_tokens` leaves no room for a prompt. A stage's model has the
// context of what it was trained from. `resolved`: references to digests. What is not here yet, cannot be read as a
// model, or was not read yet since the start, is passed over.
void CheckContexts(const v1::JobSpec& spec, const std::map<std::string, std::string>& resolved,
                   const Artifacts& artifacts, std::vector<v1::SpecProblem>* problems);

}  // namespace rlhf::coordinator
