// What a job keeps in table meta: prefixes, to which KeyOf appends the step, and keys.
#pragma once

#include <string>

namespace rlhf::coordinator {

// rlhf.v1.CommittedStep.
inline std::string CommittedStepPrefix(const std::string& job_id) {
  return "committed_step/" + job_id + "/";
}
// A checkpoint artifact's digest; of all jobs.
inline std::string CheckpointPrefix() {
  return "checkpoint/";
}
inline std::string CheckpointPrefix(const std::string& job_id) {
  return CheckpointPrefix() + job_id + "/";
}
// rlhf.v1.MonitorStep.
inline std::string MonitorStepPrefix(const std::string& job_id) {
  return "monitor/" + job_id + "/";
}
// The step up to which a job's retention has freed payloads, decimal. No step is appended.
inline std::string FreedKey(const std::string& job_id) {
  return "freed/" + job_id;
}
// Of a job that was deleted, while rows of it are left. No step is appended, and no value.
inline std::string DeletedKey(const std::string& job_id) {
  return "deleted/" + job_id;
}
// How long a collect job has been open, in whole seconds, decimal.
inline std::string CollectAgeKey(const std::string& job_id) {
  return "collect_age/" + job_id;
}

}  // namespace rlhf::coordinator
