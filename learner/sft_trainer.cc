#include "learner/sft_trainer.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "learner/batching.h"

namespace rlhf::learner {
namespace {

constexpr uint64_t kSftDataStream = 1;

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> SftTrainer::Make(const TrainerInputs& inputs) {
  const v1::SftSpec& spec = inputs.spec.sft();
  auto trainer = std::make_unique<SftTrainer>();
  trainer->inputs_ = inputs;
  const std::string& dir = inputs.local.at(spec.model());
  RLHF_ASSIGN_OR_RETURN(const auto tokenizer, artifact::Tokenizer::Load(dir));
  RLHF_ASSIGN_OR_RETURN(auto model,
                        model::LoadModel(dir, {.dtype = DtypeOf(spec.precision()), .device = inputs.device}));
  RLHF_RETURN_IF_ERROR(SetUp(inputs.spec, spec.has_lora() ? &spec.lora() : nullptr, model.get()));
  RLHF_ASSIGN_OR_RETURN(trainer->data_,
                        SupervisedData::Load(inputs.local.at(spec.data()), *tokenizer,
                                             model->config().max_position_embeddings, spec.prompt_loss_weight()));
  trainer->policy_ = std::make_unique<Trainable>(
      std::move(model), spec.optimizer(), spec.steps(), inputs.spec.learners().shard_optimizer_state(),
      inputs.spec.learners().shard_parameters() ? Layers::kDividedInSteps : Layers::kWhole);
  return trainer;
}

absl::StatusOr<StepResult> SftTrainer::RunStep(int64_t step, const std::vector<v1::Sample>&) {
  const v1::SftSpec& spec = inputs_.spec.sft();
  policy_->BeginStep(collective_);
  const std::vector<size_t> items =
      ItemsOf(data_.size(), inputs_.spec.seed(), kSftDataStream, (step - 1) * spec.batch_size(), spec.batch_size());
  const double weight = data_.Weight(items);
  double tokens = 0;
  for (const size_t item : items) tokens += static_cast<double>(data_.lengths()[item]);
  const std::vector<size_t> mine = RankShare(items, collective_->rank(), collective_->world_size());
  std::vector<Trainable::LossTerm> terms;
  for (std::vector<size_t>& group : MicroBatches(mine, data_.lengths(), spec.micro_batch_tokens())) {
    terms.push_back(
        [this, weight, group = std::move(group)] { return data_.WeightedNll(policy_->model(), group) / weight; });
  }
  StepResult result;
  const double rate = policy_->optimizer().learning_rate();
  RLHF_ASSIGN_OR_RETURN(const double loss, policy_->Accumulate(terms, collective_));
  RLHF_ASSIGN_OR_RETURN(const double norm, policy_->FinishSums(collective_));
  std::vector<double> sums{loss};
  RLHF_RETURN_IF_ERROR(SumOverRanks(&sums, inputs_.device, collective_));
  RLHF_ASSIGN_OR_RETURN(const bool finite, collective_->Vote(std::isfinite(sums[0]) && std::isfinite(norm)));
  if (!finite) {
    RLHF_RETURN_IF_ERROR(policy_->EndStep(collective_));
    result.refusal =
        absl::StrCat("the loss or a gradient is not finite (loss ", sums[0], ", gradient norm ", norm, ")");
    return result;
  }
  absl::Status stepped = policy_->Step(norm, collective_);
  if (stepped.ok()) stepped = policy_->EndStep(collective_);
  if (!stepped.ok()) {
    RevertStep();
    return stepped;
  }
  last_loss_ = sums[0];
  result.trained = true;
  result.metrics = {{"loss", sums[0]}, {"learning_rate", rate}, {"grad_norm", norm}, {"tokens", tokens}};
  return result;
}

State SftTrainer::CheckpointState() const {
  State state;
  policy_->AppendState("model", &state);
  return state;
}

StateSource SftTrainer::Source() const {
  return [this](const StateVisitor& visitor) { return policy_->VisitState("model", collective_, visitor); };
}

absl::Status SftTrainer::SaveCheckpoint(const std::string& dir) const {
  if (collective_ != nullptr && collective_->rank() != 0) return Source()(IgnoreState);
  return WriteCheckpoint(dir, CheckpointState(), Source(),
                         {{"kind", "sft"}, {"updates", policy_->optimizer().updates()}});
}

absl::Status SftTrainer::LoadCheckpoint(const std::string& dir) {
  policy_->ExpectState(collective_);
  nlohmann::json numbers;
  RLHF_RETURN_IF_ERROR(ReadCheckpoint(dir, CheckpointState(), &numbers));
  policy_->optimizer().set_updates(numbers.value("updates", int64_t{0}));
  return absl::OkStatus();
}

absl::StatusOr<std::string> SftTrainer::Digest() const {
  return StateDigest(CheckpointState(), Source(), {static_cast<double>(policy_->optimizer().updates())});
}

absl::Status SftTrainer::SyncFrom(const std::vector<int>& owners) {
  std::vector<double> numbers{static_cast<double>(policy_->optimizer().updates())};
  RLHF_RETURN_IF_ERROR(SyncState({{"model", policy_.get()}}, &numbers, inputs_.device, owners, collective_));
  policy_->optimizer().set_updates(static_cast<int64_t>(numbers[0]));
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, v1::Metric>> SftTrainer::Finish(const std::string& out_dir) {
  if (collective_->rank() == 0)
    RLHF_RETURN_IF_ERROR(SaveFinished(policy_->model(), out_dir, inputs_.local.at(inputs_.spec.sft().model()),
                                      inputs_.spec.sft().model()));
  v1::Metric loss;
  loss.set_value(last_loss_);
  return std::map<std::string, v1::Metric>{{"loss", loss}};
}

}  // namespace rlhf::learner
