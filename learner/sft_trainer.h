// Supervised fine-tuning: weighted next-token loss over prompt and response.
#pragma once

#include <memory>

#include "learner/supervised.h"
#include "learner/trainable.h"
#include "learner/trainer.h"

namespace rlhf::learner {

class SftTrainer final : public Trainer {
 public:
  static absl::StatusOr<std::unique_ptr<Trainer>> Make(const TrainerInputs& inputs);

  void SetCollective(Collective* collective) override { collective_ = collective; }
  int64_t total_steps() const override { return inputs_.spec.sft().steps(); }
  absl::StatusOr<StepResult> RunStep(int64_t step, const std::vector<v1::Sample>& batch) override;
  void RevertStep() override { policy_->optimizer().RestoreSnapshot(); }
  absl::Status SaveCheckpoint(const std::string& dir) const override;
  absl::Status LoadCheckpoint(const std::string& dir) override;
  absl::StatusOr<std::string> Digest() const override;
  Share share() const override { return policy_->optimizer().share(); }
  absl::Status SyncFrom(const std::vector<int>& owners) override;
  const model::Transformer& model() const override { return policy_->model(); }
  absl::StatusOr<std::map<std::string, v1::Metric>> Finish(const std::string& out_dir) override;

 private:
  State CheckpointState() const;
  StateSource Source() const;

  TrainerInputs inputs_;
  SupervisedData data_;
  std::unique_ptr<Trainable> policy_;
  Collective* collective_ = nullptr;
  double last_loss_ = 0;
};

}  // namespace rlhf::learner
