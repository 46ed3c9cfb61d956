// A PPO job's monitor together with what it saw, a row of rlhf.v1.MonitorStep a step: it goes on where it was after a
// restart. Not thread-safe.
#pragma once

#include <string>
#include <vector>

#include "coordinator/jobs/monitor.h"
#include "coordinator/sampling.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

class StepWatch {
 public:
  // Reads what was seen of the job before; what cannot be read was not seen.
  StepWatch(std::string job_id, const v1::MonitorSpec& spec, StateStore* store);

  // For ObserveStep, which may run on any thread.
  double outside_deviations() const { return monitor_.outside_deviations(); }
  // What a committed step's batch says (as observed, the KL from `point`) goes to its metrics and rows; returns its
  // alarms, for the job's events.
  std::vector<v1::Alert> Add(v1::MonitorStep seen, v1::MetricPoint* point, WriteBatch* writes);

 private:
  const std::string job_id_;
  Monitor monitor_;
};

// The samples of a step that was assigned or trained, in issue order, from the store; the store's error. Any thread.
absl::StatusOr<std::vector<v1::Sample>> ReadBatch(Sampling* sampling, const std::string& job_id, int64_t step);

}  // namespace rlhf::coordinator
