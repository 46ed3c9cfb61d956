// Prefixes of what a job keeps in table meta. KeyOf appends the step.
#pragma once

#include <string>

namespace rlhf::coordinator {

// rlhf.v1.CommittedStep.
inline std::string CommittedStepPrefix(const std::string& job_id) {
  return "committed_step/" + job_id + "/";
}
// A checkpoint artifact's digest.
inline std::string CheckpointPrefix(const std::string& job_id) {
  return "checkpoint/" + job_id + "/";
}
// rlhf.v1.MonitorStep.
inline std::string MonitorStepPrefix(const std::string& job_id) {
  return "monitor/" + job_id + "/";
}

}  // namespace rlhf::coordinator
