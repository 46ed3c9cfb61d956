// A job's training, one step at a time: no gRPC, no clock, no knowledge of groups beyond a Collective. Strategies:
// SftTrainer, RewardModelTrainer, PpoTrainer.
//
// Not thread-safe. All ranks make the same calls in the same order with the same arguments.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "learner/collective.h"
#include "learner/share.h"
#include "model/transformer.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::learner {

struct TrainerInputs {
  v1::JobSpec spec;                          // complete
  std::map<std::string, std::string> local;  // of LearnerReferences(spec) each to a local directory
  torch::Device device = torch::kCPU;
};

struct StepResult {
  // False: refused by vote (a non-finite loss or gradient on some rank); weights are as before the step.
  bool trained = false;
  std::string refusal;                    // why, when refused
  std::map<std::string, double> metrics;  // equal on all ranks: "loss/policy", "kl", "reward/mean", …
  bool stop = false;                      // early stop: this was the last step
  std::string stop_reason;
};

class Trainer {
 public:
  virtual ~Trainer() = default;
  // InvalidArgument for bad data or specification, with file and line.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const TrainerInputs& inputs);

  // The group may change between steps. On a survivor the state stays; equal weights on all ranks, and a share of the
  // optimizer's state that is of this group, are the caller's duty (checkpoint or SyncFrom).
  virtual void SetCollective(Collective* collective) = 0;
  virtual int64_t total_steps() const = 0;
  // Step from 1. `batch` is the step's samples in issue order (PPO), else ignored. Unavailable: a collective failed;
  // the snapshot was restored.
  virtual absl::StatusOr<StepResult> RunStep(int64_t step, const std::vector<v1::Sample>& batch) = 0;

  // Back to the state before the newest RunStep: its commit was not taken. With learners.shard_optimizer_state the
  // other shares' parameters come back with the next SyncFrom.
  virtual void RevertStep() = 0;

  // Everything that shapes the future: weights, moments, schedules, KL coefficient, reward scale, random state, ptx
  // cursor. Files only, no fsync. Rank 0 writes, and only it calls; with learners.shard_optimizer_state every rank
  // calls and hands its share over, tensor by tensor (Unavailable: the group broke). The files are the same.
  virtual absl::Status SaveCheckpoint(const std::string& dir) const = 0;
  virtual absl::Status LoadCheckpoint(const std::string& dir) = 0;
  // Digest of all that a checkpoint would hold now (see StateDigest in checkpoint.h). On every rank.
  virtual absl::StatusOr<std::string> Digest() const = 0;
  // What this rank holds of the optimizer's state: {0, 1}, all, without learners.shard_optimizer_state.
  virtual Share share() const = 0;
  // Brings the whole state to all ranks from those that hold it: owners[s] has share s of owners.size() (OwnersOf).
  virtual absl::Status SyncFrom(const std::vector<int>& owners) = 0;

  // The model that the job makes (policy, reward model or SFT model), live. With learners.shard_parameters whole
  // between steps; not after a step that failed, until LoadCheckpoint or SyncFrom.
  virtual const model::Transformer& model() const = 0;
  // Writes the finished model directory (and evaluates held-out data first, where the kind has some). Called on every
  // rank; only rank 0 writes.
  virtual absl::StatusOr<std::map<std::string, v1::Metric>> Finish(const std::string& out_dir) = 0;
};

}  // namespace rlhf::learner
