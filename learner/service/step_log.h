// What this rank trained, as JSON lines for `rlhfctl ledger --check --evidence`: a line before a step's commit
// ("trained": digests of weights, metrics and batch, at checkpoints and the end also of the optimizer's state), one
// after it ("committed") and one for a refused step ("refused"). Jobs without a ledger (SFT, reward models): a
// "trained" line at each checkpoint and at the end, of weights and state.
//
// Not thread-safe. Lines survive the process's death, not the machine's: they are evidence, not state.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::learner {

struct StepEvidence {
  int64_t step = 0;
  std::string weights_digest, state_digest, metrics_digest, batch_digest;
  std::vector<std::string> samples;  // artifact::BatchLine of each
};

// XXH3-128 over the metrics in order of their names: name, a zero byte, the value's eight bytes; hex.
std::string MetricsDigest(const std::map<std::string, double>& metrics);

class StepLog {
 public:
  // Appends to DIR/steps-INSTANCE.jsonl; an empty folder's name: writes nothing.
  static absl::StatusOr<StepLog> Open(const std::string& dir, const std::string& instance);
  StepLog() = default;
  StepLog(StepLog&& other) noexcept;
  StepLog& operator=(StepLog&& other) noexcept;
  ~StepLog();

  void Trained(const v1::GroupAssignment& group, const StepEvidence& evidence);
  void Committed(const v1::GroupAssignment& group, const v1::PolicyVersion& version);
  void Refused(const v1::GroupAssignment& group, int64_t step, const std::string& why);

 private:
  void Append(const std::string& line) const;
  int fd_ = -1;
};

}  // namespace rlhf::learner
