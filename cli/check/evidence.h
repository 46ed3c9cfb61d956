// What learners (--evidence-dir: steps-INSTANCE.jsonl) and rollout workers (accepted-INSTANCE.jsonl) noted down.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rlhf::cli {

struct StepLine {
  std::string source;  // the instance that wrote it
  std::string event;   // "trained", "committed", "refused"
  std::string job;
  uint64_t epoch = 0, lineage = 0;
  int rank = 0, world = 0;
  int64_t step = 0;
  std::string weights, metrics, batch;
  std::string state;  // of the optimizer and all else that a checkpoint holds; at checkpoints and the end only
  std::vector<std::string> samples;  // rank 0's "trained" only
};

struct AcceptedLine {
  std::string source, job;
  std::string sample;  // artifact::BatchLine
};

struct Evidence {
  std::vector<StepLine> steps;  // each source's in the order of its writing
  std::vector<AcceptedLine> accepted;
};

// All files of the folder. NotFound when it holds none: a check against nothing would find nothing. InvalidArgument
// names file and line of what is not such a line; the last line of a file may be cut (its writer died) and is left out
// then.
absl::StatusOr<Evidence> ReadEvidence(const std::string& dir);

}  // namespace rlhf::cli
