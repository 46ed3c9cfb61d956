// What the fleet was told and did, as JSON lines for `rlhfctl ledger --check --evidence`: a StepLog of a learner, an
// AcceptedLog of a rollout worker.
//
// Not thread-safe. Lines survive the process's death, not the machine's: they are evidence, not state.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/fleet_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"

namespace rlhf::client {

struct StepEvidence {
  int64_t step = 0;
  std::string weights_digest, state_digest, metrics_digest, batch_digest;
  std::vector<std::string> samples;  // artifact::BatchLine of each
};

// XXH3-128 over the metrics in order of their names: name, a zero byte, the value's eight bytes; hex.
std::string MetricsDigest(const std::map<std::string, double>& metrics);

// A file that lines are appended to, each by one write, so that whoever is killed leaves whole lines.
class EvidenceFile {
 public:
  EvidenceFile() = default;  // writes nothing
  // Appends to DIR/NAME.
  static absl::StatusOr<EvidenceFile> Open(const std::string& dir, const std::string& name);
  EvidenceFile(EvidenceFile&& other) noexcept;
  EvidenceFile& operator=(EvidenceFile&& other) noexcept;
  ~EvidenceFile();

  bool is_open() const { return fd_ >= 0; }
  void Append(const std::string& lines) const;

 private:
  int fd_ = -1;
};

// What a rank trained: a line before a step's commit ("trained": digests of weights, metrics and batch, at checkpoints
// and the end also of the optimizer's state), one after it ("committed") and one for a refused step ("refused"). Jobs
// without a ledger (SFT, reward models): a "trained" line at each checkpoint and at the end, of weights and state.
class StepLog {
 public:
  // Appends to DIR/steps-INSTANCE.jsonl; an empty folder's name: writes nothing.
  static absl::StatusOr<StepLog> Open(const std::string& dir, const std::string& instance);

  void Trained(const v1::GroupAssignment& group, const StepEvidence& evidence);
  void Committed(const v1::GroupAssignment& group, const v1::PolicyVersion& version);
  void Refused(const v1::GroupAssignment& group, int64_t step, const std::string& why);

 private:
  EvidenceFile file_;
};

// Samples that the coordinator said it has stored.
class AcceptedLog {
 public:
  // Appends to DIR/accepted-INSTANCE.jsonl; an empty folder's name: writes nothing.
  static absl::StatusOr<AcceptedLog> Open(const std::string& dir, const std::string& instance);

  // A line for each of the request's samples that the response accepts.
  void Accepted(const v1::SubmitSamplesRequest& request, const v1::SubmitSamplesResponse& response) const;

 private:
  EvidenceFile file_;
};

}  // namespace rlhf::client
