// Proximal policy optimisation (Schulman et al. 2017) of a language model against scores, held near a reference:
// shared/ALGORITHMS, "PPO".
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "learner/advantage/interface.h"
#include "learner/kl/interface.h"
#include "learner/ppo_batch.h"
#include "learner/supervised.h"
#include "learner/trainable.h"
#include "learner/trainer.h"

namespace rlhf::learner {

class PpoTrainer final : public Trainer {
 public:
  static absl::StatusOr<std::unique_ptr<Trainer>> Make(const TrainerInputs& inputs);

  void SetCollective(Collective* collective) override { collective_ = collective; }
  int64_t total_steps() const override { return spec().steps(); }
  absl::StatusOr<StepResult> RunStep(int64_t step, const std::vector<v1::Sample>& batch) override;
  void RevertStep() override;
  absl::Status SaveCheckpoint(const std::string& dir) const override;
  absl::Status LoadCheckpoint(const std::string& dir) override;
  absl::StatusOr<std::string> Digest() const override;
  Share share() const override { return policy_->optimizer().share(); }
  absl::Status SyncFrom(const std::vector<int>& owners) override;
  const model::Transformer& model() const override { return policy_->model(); }
  absl::StatusOr<std::map<std::string, v1::Metric>> Finish(const std::string& out_dir) override;

 private:
  // What is known of a batch before its first update; the same on all ranks. Float32 [N] on the CPU.
  struct Before {
    torch::Tensor old_log_probs, entropy, values, weights;
    Advantages advantages;
    double kl = 0;  // mean over samples of Σ (old − reference), nats a sequence; what β adapts to in every form
    double explained_variance = 0;
    bool trains_policy = true;  // false: the critic warms up (PpoSpec.critic_warmup_steps)
  };
  // Sums over a step's updates, of this rank; then of all.
  struct Sums {
    double policy_loss = 0, value_loss = 0, ptx_loss = 0, kl_loss = 0, clipped = 0, approx_kl = 0, rows = 0;
    double policy_norm = 0, critic_norm = 0;  // the same on all ranks
    double updates = 0;
    double first_ratio_error = 0;  // the largest in the first minibatch
  };

  const v1::PpoSpec& spec() const { return inputs_.spec.ppo(); }
  double temperature() const { return spec().sampling().temperature() > 0 ? spec().sampling().temperature() : 1.0; }
  // With adapters the reference is the policy's own base, and nobody else computes it.
  bool own_reference() const { return policy_->model().lora() != nullptr; }
  // Fills the batch's reference log-probabilities in where they are this learner's to make.
  absl::StatusOr<Before> Prepare(PpoBatch& batch);
  torch::Tensor ReferenceLogProbs(const PpoForward& forward);
  void ComputeAdvantages(const PpoBatch& batch, Before* before) const;
  // Not finite on some rank: the refusal's reason; else empty.
  absl::StatusOr<std::string> Update(const PpoBatch& batch, const Before& before, const std::vector<size_t>& items,
                                     bool first, Sums* sums);
  std::vector<Trainable::LossTerm> PolicyTerms(const PpoBatch& batch, const Before& before,
                                               const std::vector<size_t>& items, bool first, Sums* sums);
  // Of the policy, too: the cross-entropy of the next lines.
  void AppendPtxTerms(Sums* sums, std::vector<Trainable::LossTerm>* terms);
  std::vector<Trainable::LossTerm> CriticTerms(const PpoBatch& batch, const Before& before,
                                               const std::vector<size_t>& items, Sums* sums);
  absl::Status Report(const PpoBatch& batch, const Before& before, const std::vector<v1::Sample>& samples, Sums* sums,
                      StepResult* result);
  // That old log-probabilities are the sampler's, where they must be, and the first minibatch's the old ones.
  absl::Status SelfCheck(const PpoBatch& batch, const Before& before, double ratio_error) const;
  std::vector<double> Numbers() const;
  void SetNumbers(const std::vector<double>& numbers);
  // "policy" and, where there is one, "critic".
  std::vector<std::pair<std::string, Trainable*>> Parts() const;
  State CheckpointState() const;
  StateSource Source() const;

  TrainerInputs inputs_;
  Collective* collective_ = nullptr;
  std::unique_ptr<Trainable> policy_, critic_;  // critic_: null for estimators without one
  std::unique_ptr<AdvantageEstimator> estimator_;
  std::unique_ptr<KlController> kl_;
  SupervisedData ptx_;
  int64_t ptx_cursor_ = 0;
  double kl_before_ = 0;  // snapshot of the newest step's beginning
  int64_t ptx_cursor_before_ = 0;
};

}  // namespace rlhf::learner
