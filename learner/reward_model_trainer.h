// A reward model from comparisons: Bradley–Terry loss on a scalar head at the last token, or on one for each criterion.
#pragma once

#include <memory>
#include <vector>

#include "learner/comparison_data.h"
#include "learner/trainable.h"
#include "learner/trainer.h"

namespace rlhf::learner {

// What a reward model is worth on comparisons it was not trained on. differences: r(chosen) − r(rejected). Keys:
// accuracy (without ties; nothing where all are ties), log_loss (a tie is a half-label), ece (ten bins of predicted
// probability) with its bins as "calibration/BIN" (how often people agreed) and "calibration.confidence/BIN" (how sure
// the model was), and accuracy and log_loss by slice, as "accuracy{SLICE}"; where it is a mean with a 95 % interval,
// over prompts where some have several pairs: their judgements are not independent.
//
// Beside them simple baselines, so that a model that only counts words is seen as such: "baseline.random.accuracy",
// "baseline.length.accuracy" (always the longer answer, or always the shorter one, whichever is right more often),
// "accuracy{against length}" (on pairs that the length baseline gets wrong) and "length_correlation" (Pearson's r of
// the differences in reward and in tokens).
std::map<std::string, v1::Metric> RewardModelMetrics(const std::vector<ComparisonPair>& pairs,
                                                     const std::vector<double>& differences);
// accuracy, log_loss and ece of one head on the pairs that its criterion's ratings decide, as
// "accuracy{criterion=NAME}". differences: of that head's outputs; `head` is its place in ComparisonPair::rated.
// Nothing where no pair is rated.
std::map<std::string, v1::Metric> CriterionMetrics(const std::string& criterion, size_t head,
                                                   const std::vector<ComparisonPair>& pairs,
                                                   const std::vector<double>& differences);

class RewardModelTrainer final : public Trainer {
 public:
  static absl::StatusOr<std::unique_ptr<Trainer>> Make(const TrainerInputs& inputs);

  void SetCollective(Collective* collective) override { collective_ = collective; }
  int64_t total_steps() const override;
  absl::StatusOr<StepResult> RunStep(int64_t step, const std::vector<v1::Sample>& batch) override;
  void RevertStep() override { model_->optimizer().RestoreSnapshot(); }
  absl::Status SaveCheckpoint(const std::string& dir) const override;
  absl::Status LoadCheckpoint(const std::string& dir) override;
  absl::StatusOr<std::string> Digest() const override;
  Share share() const override { return model_->optimizer().share(); }
  absl::Status SyncFrom(const std::vector<int>& owners) override;
  const model::Transformer& model() const override { return model_->model(); }
  absl::StatusOr<std::map<std::string, v1::Metric>> Finish(const std::string& out_dir) override;

 private:
  State CheckpointState() const;
  StateSource Source() const;

  const v1::RewardModelSpec& spec() const { return inputs_.spec.reward_model(); }
  // Outputs of the head: one, or one a criterion in the order of their names.
  size_t outputs() const { return heads_.empty() ? 1 : heads_.size(); }
  // A preference from the outputs' differences: the difference itself, or the mean by what each head counts in the
  // reward, weight · scale.
  static double Combine(const std::vector<model::RewardHead>& heads, const double* differences);
  // Losses over `pairs`; adds to `right` how many pairs that are no ties the model orders as people do.
  torch::Tensor Loss(const std::vector<size_t>& items, double pairs, double* right) const;
  torch::Tensor HeadsLoss(const std::vector<size_t>& items, const torch::Tensor& rewards, double* right) const;
  absl::StatusOr<model::RewardNormalization> Normalize() const;

  TrainerInputs inputs_;
  std::unique_ptr<artifact::Tokenizer> tokenizer_;
  ComparisonData data_;
  std::vector<model::RewardHead> heads_;  // criteria and weights; empty without criterion_heads
  std::vector<int64_t> lengths_;          // of both sequences of a training pair
  std::unique_ptr<Trainable> model_;
  Collective* collective_ = nullptr;
};

}  // namespace rlhf::learner
