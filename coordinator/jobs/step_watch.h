// A PPO job's monitor together with what it saw, a row of rlhf.v1.MonitorStep a step: it goes on where it was after a
// restart. What it makes of a step's batch is measured off the loop, while the learners train on it.
//
// Loop thread only; owned by the job's driver.
#pragma once

#include <list>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "coordinator/jobs/driver.h"
#include "coordinator/jobs/monitor.h"

namespace rlhf::coordinator {

class StepWatch {
 public:
  // Reads what was seen of the job before; what cannot be read was not seen.
  StepWatch(JobHost* host, std::string job_id, const v1::MonitorSpec& spec);

  // Begins to measure a step's batch, instead of another one; null: the step's, from the store, as after a restart in
  // the middle of the step. Nothing when the step's is being measured or has been.
  void Begin(int64_t step, Driver::Batch batch);
  // Runs `fn` once that is measured, now if it is; with an error when it is given up before.
  void WhenSeen(absl::AnyInvocable<void(absl::Status)> fn);
  void FailWaiting(const absl::Status& why);
  // The batch is another's or nobody's from here on.
  void Drop(const absl::Status& why);
  // What the measured batch says (the KL from `point`) goes to the step's metrics and the job's rows and events;
  // returns the alarms. None when the batch could not be read. Of a step that is trained again only those are told that
  // were not told the first time.
  std::vector<v1::Alert> Add(v1::MetricPoint* point, WriteBatch* writes);
  // What was seen of these steps is another history: a restart is to know nothing of it.
  void ForgetSteps(int64_t first, int64_t last, WriteBatch* writes) const;

 private:
  struct Observation {
    int64_t step = 0;
    bool ready = false;
    std::optional<v1::MonitorStep> seen;  // none: the batch could not be read
  };

  // Whether an alarm of the step was not told yet; it is from now on. Another lineage is another history.
  bool IsNew(int64_t step, const v1::Alert& alarm);

  JobHost* const host_;
  const std::string job_id_;
  Monitor monitor_;
  std::set<std::tuple<uint64_t, int64_t, std::string, std::string>> told_;  // lineage, step, monitor, slice
  std::shared_ptr<Observation> observation_;                                // of the newest batch
  std::list<absl::AnyInvocable<void(absl::Status)>> waiting_;
};

}  // namespace rlhf::coordinator
