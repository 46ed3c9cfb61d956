// What `watch` and `submit --follow` show: bars on a terminal, plain lines elsewhere.
#pragma once

#include <map>
#include <string>

#include "absl/time/time.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {

// Folds events into one view of a job (or of a pipeline and its stages). Pure: no I/O.
class ProgressView {
 public:
  // Total steps by job id, learnt from GetJob; 0 when unknown.
  void SetJob(const v1::Job& job);
  void Apply(const v1::JobEvent& event);

  // One bar for the current stage, for instance
  // "ppo      ━━━━━━━━────  12/60  41.2 samples/s  1.2k tokens/s  reward 0.81  KL 0.42".
  std::string Bar(int width) const;
  // A line for an event that people want to keep, beginning with its stage's name (its job's, outside of a pipeline),
  // or empty.
  std::string Line(const v1::JobEvent& event) const;

 private:
  struct Stage {
    std::string name;
    int64_t step = 0, total = 0;
    std::map<std::string, double> metrics;
  };
  std::string NameOf(const v1::JobEvent& event) const;

  std::map<std::string, Stage> stages_;
  std::string current_;
};

}  // namespace rlhf::cli
