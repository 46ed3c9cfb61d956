#include "learner/trainer.h"

#include <utility>

#include "learner/ppo_trainer.h"
#include "learner/reward_model_trainer.h"
#include "learner/sft_trainer.h"
#include "model/guard.h"

namespace rlhf::learner {
namespace {

// LibTorch's exceptions end here.
class GuardedTrainer final : public Trainer {
 public:
  explicit GuardedTrainer(std::unique_ptr<Trainer> trainer) : trainer_(std::move(trainer)) {}

  void SetCollective(Collective* collective) override { trainer_->SetCollective(collective); }
  int64_t total_steps() const override { return trainer_->total_steps(); }
  absl::StatusOr<StepResult> RunStep(int64_t step, const std::vector<v1::Sample>& batch) override {
    return model::Guard("training step", [&] { return trainer_->RunStep(step, batch); });
  }
  void RevertStep() override { trainer_->RevertStep(); }
  absl::Status SaveCheckpoint(const std::string& dir) const override {
    return model::Guard("checkpoint", [&] { return trainer_->SaveCheckpoint(dir); });
  }
  absl::Status LoadCheckpoint(const std::string& dir) override {
    return model::Guard("checkpoint", [&] { return trainer_->LoadCheckpoint(dir); });
  }
  absl::StatusOr<std::string> Digest() const override {
    return model::Guard("digest of the state", [&] { return trainer_->Digest(); });
  }
  Share share() const override { return trainer_->share(); }
  absl::Status SyncFrom(const std::vector<int>& owners) override {
    return model::Guard("synchronisation", [&] { return trainer_->SyncFrom(owners); });
  }
  const model::Transformer& model() const override { return trainer_->model(); }
  absl::StatusOr<std::map<std::string, v1::Metric>> Finish(const std::string& out_dir) override {
    return model::Guard("end of training", [&] { return trainer_->Finish(out_dir); });
  }

 private:
  std::unique_ptr<Trainer> trainer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const TrainerInputs& inputs) {
  absl::StatusOr<std::unique_ptr<Trainer>> made =
      model::Guard("loading", [&]() -> absl::StatusOr<std::unique_ptr<Trainer>> {
        switch (inputs.spec.kind_case()) {
          case v1::JobSpec::kSft:
            return SftTrainer::Make(inputs);
          case v1::JobSpec::kRewardModel:
            return RewardModelTrainer::Make(inputs);
          case v1::JobSpec::kPpo:
            return PpoTrainer::Make(inputs);
          default:
            return absl::InvalidArgumentError("this kind of job does not train; expected sft, reward_model or ppo");
        }
      });
  if (!made.ok()) return made.status();
  return std::make_unique<GuardedTrainer>(*std::move(made));
}

}  // namespace rlhf::learner
