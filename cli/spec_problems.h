// What the coordinator finds wrong with a job, where it stands in the job's file.
#pragma once

#include <string>

#include "rlhf/v1/job_service.pb.h"

namespace rlhf::cli {

// "FILE:LINE: FIELD: PROBLEM". The line is that of the field's key in `yaml`, the file's text; of a field that is not
// there, of the nearest one around it; none for what the whole file lacks.
std::string ProblemText(const std::string& file, const std::string& yaml, const v1::SpecProblem& problem);

}  // namespace rlhf::cli
