#include "learner/reward_model_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/prompt.h"
#include "common/intervals.h"
#include "common/status_util.h"
#include "learner/batching.h"
#include "learner/losses.h"

namespace rlhf::learner {
namespace {

constexpr uint64_t kDataStream = 2;
constexpr uint64_t kMemberSeeds = 15'485'863;  // members of an ensemble: another head and order, the same split

// Values of pairs, those of a prompt together.
class ByPrompt {
 public:
  void Add(const ComparisonPair& pair, double value) {
    const auto [place, fresh] = places_.try_emplace(pair.prompt < 0 ? --alone_ : pair.prompt, values_.size());
    if (fresh) values_.emplace_back();
    values_[place->second].push_back(value);
  }
  bool empty() const { return values_.empty(); }
  v1::Metric Metric(Range range) const { return ClusteredMean(values_, range); }

 private:
  std::map<int64_t, size_t> places_;  // by prompt
  std::vector<std::vector<double>> values_;
  int64_t alone_ = 0;
};

double Mean(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// 1 where the model orders the pair as people do.
double Right(double difference) {
  return difference == 0 ? 0.5 : difference > 0 ? 1 : 0;
}

// How sure the model is of pairs against how often it is right, in bins of its confidence, which is ½ to 1.
struct Calibration {
  static constexpr int kBins = 10;
  double confidence[kBins] = {}, outcome[kBins] = {}, count[kBins] = {};
  int64_t n = 0;

  void Add(double p, double right) {
    const int bin = std::min(kBins - 1, static_cast<int>((p - 0.5) * 2 * kBins));
    confidence[bin] += p;
    outcome[bin] += right;
    count[bin] += 1;
    ++n;
  }
  double Ece() const {
    double sum = 0;
    for (int bin = 0; bin < kBins; ++bin) sum += std::abs(confidence[bin] - outcome[bin]);
    return sum / static_cast<double>(n);
  }
};

void AddBaselines(const std::vector<ComparisonPair>& pairs, const std::vector<double>& differences,
                  std::map<std::string, v1::Metric>* metrics) {
  std::vector<double> longer, lengths;
  for (const ComparisonPair& pair : pairs) {
    // Both begin with the same prompt and end with the end of text.
    lengths.push_back(static_cast<double>(pair.chosen.size()) - static_cast<double>(pair.rejected.size()));
    if (!pair.tie) longer.push_back(Right(lengths.back()));
  }
  const bool longer_is_better = Mean(longer) >= 0.5;
  ByPrompt by_length, against;
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (pairs[i].tie) continue;
    const double right = longer_is_better ? Right(lengths[i]) : 1 - Right(lengths[i]);
    by_length.Add(pairs[i], right);
    if (right == 0) against.Add(pairs[i], Right(differences[i]));
  }
  if (!by_length.empty()) {
    (*metrics)["baseline.length.accuracy"] = by_length.Metric(Range::kUnit);
    (*metrics)["baseline.random.accuracy"].set_value(0.5);
  }
  if (!against.empty()) (*metrics)["accuracy{against length}"] = against.Metric(Range::kUnit);
  const double mx = Mean(differences), my = Mean(lengths);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    xy += (differences[i] - mx) * (lengths[i] - my);
    xx += (differences[i] - mx) * (differences[i] - mx);
    yy += (lengths[i] - my) * (lengths[i] - my);
  }
  (*metrics)["length_correlation"].set_value(xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0);
  (*metrics)["length_correlation"].set_n(static_cast<int64_t>(pairs.size()));
}

}  // namespace

std::map<std::string, v1::Metric> RewardModelMetrics(const std::vector<ComparisonPair>& pairs,
                                                     const std::vector<double>& differences) {
  std::map<std::string, ByPrompt> right, losses;   // by metric
  std::map<std::string, Calibration> calibration;  // by slice, of all under ""
  for (size_t i = 0; i < pairs.size(); ++i) {
    const double d = differences[i];
    const double value = pairs[i].tie ? 0.5 : Right(d);
    if (!pairs[i].tie) {
      right["accuracy"].Add(pairs[i], value);
      for (const std::string& slice : pairs[i].slices)
        right[absl::StrCat("accuracy{", slice, "}")].Add(pairs[i], value);
    }
    const auto log_sigmoid = [](double x) { return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x)); };
    const double loss = pairs[i].tie ? -0.5 * (log_sigmoid(d) + log_sigmoid(-d)) : -log_sigmoid(d);
    losses["log_loss"].Add(pairs[i], loss);
    for (const std::string& slice : pairs[i].slices) losses[absl::StrCat("log_loss{", slice, "}")].Add(pairs[i], loss);
    // The probability of the candidate the model prefers, and whether people did.
    const double p = 1 / (1 + std::exp(-std::abs(d)));
    calibration[""].Add(p, value);
    for (const std::string& slice : pairs[i].slices) calibration[absl::StrCat("{", slice, "}")].Add(p, value);
  }
  std::map<std::string, v1::Metric> metrics;
  if (pairs.empty()) return metrics;
  for (const auto& [name, values] : right) metrics[name] = values.Metric(Range::kUnit);
  for (const auto& [name, values] : losses) metrics[name] = values.Metric(Range::kAny);
  AddBaselines(pairs, differences, &metrics);
  const Calibration& all = calibration[""];
  for (int bin = 0; bin < Calibration::kBins; ++bin) {
    if (all.count[bin] == 0) continue;
    const std::string name = absl::StrCat("calibration/", bin), sure = absl::StrCat("calibration.confidence/", bin);
    metrics[name].set_value(all.outcome[bin] / all.count[bin]);
    metrics[name].set_n(static_cast<int64_t>(all.count[bin]));
    metrics[sure].set_value(all.confidence[bin] / all.count[bin]);
    metrics[sure].set_n(static_cast<int64_t>(all.count[bin]));
  }
  for (const auto& [slice, bins] : calibration) {
    v1::Metric& ece = metrics[absl::StrCat("ece", slice)];
    ece.set_value(bins.Ece());
    ece.set_n(bins.n);
  }
  return metrics;
}

std::map<std::string, v1::Metric> CriterionMetrics(const std::string& criterion, size_t head,
                                                   const std::vector<ComparisonPair>& pairs,
                                                   const std::vector<double>& differences) {
  std::vector<ComparisonPair> rated;
  std::vector<double> rated_differences;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const double better = pairs[i].rated[head];
    if (std::isnan(better)) continue;
    ComparisonPair& pair = rated.emplace_back();
    pair.tie = better == 0.5;
    pair.prompt = pairs[i].prompt;
    rated_differences.push_back(better == 0 ? -differences[i] : differences[i]);
  }
  const std::map<std::string, v1::Metric> all = RewardModelMetrics(rated, rated_differences);
  std::map<std::string, v1::Metric> metrics;
  for (const char* name : {"accuracy", "log_loss", "ece"}) {
    if (const auto found = all.find(name); found != all.end())
      metrics[absl::StrCat(name, "{criterion=", criterion, "}")] = found->second;
  }
  return metrics;
}

absl::StatusOr<std::unique_ptr<Trainer>> RewardModelTrainer::Make(const TrainerInputs& inputs) {
  auto trainer = std::make_unique<RewardModelTrainer>();
  trainer->inputs_ = inputs;
  const v1::RewardModelSpec& spec = trainer->spec();
  const std::string& dir = inputs.local.at(spec.model());
  RLHF_ASSIGN_OR_RETURN(trainer->tokenizer_, artifact::Tokenizer::Load(dir));
  model::LoadOptions load;
  load.dtype = DtypeOf(spec.precision());
  load.device = inputs.device;
  load.head = model::HeadKind::kScalar;
  load.init_missing_scalar_head = true;
  const std::map<std::string, double> criteria(spec.criteria().begin(), spec.criteria().end());
  if (spec.criterion_heads()) {
    for (const auto& [criterion, weight] : criteria) trainer->heads_.push_back({criterion, weight});
  }
  load.scalar_outputs = static_cast<int>(trainer->outputs());
  load.head_seed = inputs.spec.seed() + kMemberSeeds * static_cast<uint64_t>(spec.member());
  RLHF_ASSIGN_OR_RETURN(auto model, model::LoadModel(dir, load));
  RLHF_RETURN_IF_ERROR(SetUp(inputs.spec, spec.has_lora() ? &spec.lora() : nullptr, model.get()));
  RLHF_ASSIGN_OR_RETURN(trainer->data_, ComparisonData::Load(inputs.local.at(spec.data()), *trainer->tokenizer_,
                                                             model->config().max_position_embeddings,
                                                             {.held_out_fraction = spec.held_out_fraction(),
                                                              .seed = inputs.spec.seed(),
                                                              .criteria = criteria,
                                                              .heads = spec.criterion_heads(),
                                                              .leave_out_ties = spec.leave_out_ties(),
                                                              .margin_by_strength = spec.margin_by_strength()}));
  for (const ComparisonPair& pair : trainer->data_.training)
    trainer->lengths_.push_back(static_cast<int64_t>(pair.chosen.size() + pair.rejected.size()));
  trainer->model_ = std::make_unique<Trainable>(
      std::move(model), spec.optimizer(), trainer->total_steps(), inputs.spec.learners().shard_optimizer_state(),
      inputs.spec.learners().shard_parameters() ? Layers::kDividedInSteps : Layers::kWhole);
  return trainer;
}

int64_t RewardModelTrainer::total_steps() const {
  const int64_t pairs = static_cast<int64_t>(data_.training.size()) * spec().epochs();
  return (pairs + spec().batch_size() - 1) / spec().batch_size();
}

torch::Tensor RewardModelTrainer::Loss(const std::vector<size_t>& items, double pairs, double* right) const {
  std::vector<std::vector<int32_t>> sequences;
  std::vector<float> margins;
  std::vector<uint8_t> ties;
  for (const size_t item : items) {
    const ComparisonPair& pair = data_.training[item];
    sequences.push_back(pair.chosen);
    sequences.push_back(pair.rejected);
    margins.push_back(static_cast<float>(pair.margin));
    ties.push_back(pair.tie ? 1 : 0);
  }
  const torch::Tensor all = SequenceRewards(model_->model(), sequences);
  if (!heads_.empty()) return HeadsLoss(items, all.view({-1, 2, static_cast<int64_t>(outputs())}), right) / pairs;
  const torch::Tensor rewards = all.view({-1, 2});
  const torch::Tensor chosen = rewards.select(1, 0), rejected = rewards.select(1, 1);
  const torch::Device device = rewards.device();
  const torch::Tensor tied = torch::tensor(ties).to(device, torch::kBool);
  torch::Tensor loss = BradleyTerry(chosen, rejected, torch::tensor(margins).to(device), tied).sum();
  if (spec().centering() > 0) loss = loss + spec().centering() * 0.5 * (chosen.square() + rejected.square()).sum();
  *right += (chosen > rejected).logical_and(tied.logical_not()).sum().item<double>();
  return loss / pairs;
}

double RewardModelTrainer::Combine(const std::vector<model::RewardHead>& heads, const double* differences) {
  if (heads.empty()) return differences[0];
  double sum = 0, weights = 0;
  for (size_t h = 0; h < heads.size(); ++h) {
    const double weight = heads[h].weight * heads[h].scale;
    sum += weight * differences[h];
    weights += std::abs(weight);
  }
  return weights > 0 ? sum / weights : 0;
}

// Bradley–Terry of each head on what its criterion's ratings say, the mean over heads. rewards: [pairs, 2, heads].
torch::Tensor RewardModelTrainer::HeadsLoss(const std::vector<size_t>& items, const torch::Tensor& rewards,
                                            double* right) const {
  std::vector<float> better, rated;
  for (const size_t item : items) {
    for (const double value : data_.training[item].rated) {
      better.push_back(std::isnan(value) ? 0.5F : static_cast<float>(value));
      rated.push_back(std::isnan(value) ? 0.0F : 1.0F);
    }
  }
  const auto heads = static_cast<int64_t>(heads_.size());
  const auto table = [&](const std::vector<float>& values) {
    return torch::tensor(values).view({-1, heads}).to(rewards.device());
  };
  const torch::Tensor difference = rewards.select(1, 0) - rewards.select(1, 1), p = table(better);
  torch::Tensor loss =
      -(table(rated) * (p * torch::log_sigmoid(difference) + (1 - p) * torch::log_sigmoid(-difference))).sum();
  if (spec().centering() > 0) loss = loss + spec().centering() * 0.5 * rewards.square().sum();
  const torch::Tensor host = difference.detach().to(torch::kCPU, torch::kFloat64).contiguous();
  for (size_t i = 0; i < items.size(); ++i) {
    if (!data_.training[items[i]].tie && Combine(heads_, host.data_ptr<double>() + i * heads_.size()) > 0) *right += 1;
  }
  return loss / static_cast<double>(heads);
}

absl::StatusOr<StepResult> RewardModelTrainer::RunStep(int64_t step, const std::vector<v1::Sample>&) {
  model_->BeginStep(collective_);
  const int64_t all = static_cast<int64_t>(data_.training.size()) * spec().epochs();
  const int64_t cursor = (step - 1) * spec().batch_size();
  const std::vector<size_t> items =
      ItemsOf(data_.training.size(), inputs_.spec.seed() + kMemberSeeds * static_cast<uint64_t>(spec().member()),
              kDataStream, cursor, std::min<int64_t>(spec().batch_size(), all - cursor));
  const std::vector<size_t> mine = RankShare(items, collective_->rank(), collective_->world_size());
  const auto pairs = static_cast<double>(items.size());
  double right = 0, tokens = 0, decided = 0;
  for (const size_t item : items) {
    tokens += static_cast<double>(lengths_[item]);
    decided += data_.training[item].tie ? 0 : 1;
  }
  std::vector<Trainable::LossTerm> terms;
  for (std::vector<size_t>& group : MicroBatches(mine, lengths_, spec().micro_batch_tokens())) {
    terms.push_back([this, pairs, &right, group = std::move(group)] { return Loss(group, pairs, &right); });
  }
  StepResult result;
  const double rate = model_->optimizer().learning_rate();
  RLHF_ASSIGN_OR_RETURN(const double loss, model_->Accumulate(terms, collective_));
  RLHF_ASSIGN_OR_RETURN(const double norm, model_->FinishSums(collective_));
  std::vector<double> sums{loss, right};
  RLHF_RETURN_IF_ERROR(SumOverRanks(&sums, inputs_.device, collective_));
  RLHF_ASSIGN_OR_RETURN(const bool finite, collective_->Vote(std::isfinite(sums[0]) && std::isfinite(norm)));
  if (!finite) {
    RLHF_RETURN_IF_ERROR(model_->EndStep(collective_));
    result.refusal =
        absl::StrCat("the loss or a gradient is not finite (loss ", sums[0], ", gradient norm ", norm, ")");
    return result;
  }
  absl::Status stepped = model_->Step(norm, collective_);
  if (stepped.ok()) stepped = model_->EndStep(collective_);
  if (!stepped.ok()) {
    RevertStep();
    return stepped;
  }
  result.trained = true;
  result.metrics = {{"loss", sums[0]}, {"learning_rate", rate}, {"grad_norm", norm}, {"tokens", tokens}};
  if (decided > 0) result.metrics["accuracy"] = sums[1] / decided;
  return result;
}

State RewardModelTrainer::CheckpointState() const {
  State state;
  model_->AppendState("model", &state);
  return state;
}

StateSource RewardModelTrainer::Source() const {
  return [this](const StateVisitor& visitor) { return model_->VisitState("model", collective_, visitor); };
}

absl::Status RewardModelTrainer::SaveCheckpoint(const std::string& dir) const {
  if (collective_ != nullptr && collective_->rank() != 0) return Source()(IgnoreState);
  return WriteCheckpoint(dir, CheckpointState(), Source(),
                         {{"kind", "reward_model"}, {"updates", model_->optimizer().updates()}});
}

absl::Status RewardModelTrainer::LoadCheckpoint(const std::string& dir) {
  model_->ExpectState(collective_);
  nlohmann::json numbers;
  RLHF_RETURN_IF_ERROR(ReadCheckpoint(dir, CheckpointState(), &numbers));
  model_->optimizer().set_updates(numbers.value("updates", int64_t{0}));
  return absl::OkStatus();
}

absl::StatusOr<std::string> RewardModelTrainer::Digest() const {
  return StateDigest(CheckpointState(), Source(), {static_cast<double>(model_->optimizer().updates())});
}

absl::Status RewardModelTrainer::SyncFrom(const std::vector<int>& owners) {
  std::vector<double> numbers{static_cast<double>(model_->optimizer().updates())};
  RLHF_RETURN_IF_ERROR(SyncState({{"model", model_.get()}}, &numbers, inputs_.device, owners, collective_));
  model_->optimizer().set_updates(static_cast<int64_t>(numbers[0]));
  return absl::OkStatus();
}

// Mean 0 and deviation 1 on what the policy says: of every head, then of their weighted sum.
absl::StatusOr<model::RewardNormalization> RewardModelTrainer::Normalize() const {
  std::vector<std::vector<int32_t>> sequences;
  if (spec().normalization_samples().empty()) {
    for (const ComparisonPair& pair : data_.training) {
      sequences.push_back(pair.chosen);
      sequences.push_back(pair.rejected);
    }
  } else {
    RLHF_ASSIGN_OR_RETURN(const auto samples,
                          artifact::ReadSampleData(inputs_.local.at(spec().normalization_samples())));
    for (const artifact::SampleRecord& sample : samples) {
      RLHF_ASSIGN_OR_RETURN(sequences.emplace_back(),
                            artifact::EncodeForReward(*tokenizer_, sample.prompt, sample.messages, sample.response,
                                                      model_->model().config().max_position_embeddings));
    }
  }
  const std::vector<double> rewards = ScoreSequences(model_->model(), sequences, spec().micro_batch_tokens());
  const auto standardize = [](const std::vector<double>& values, double* shift, double* scale) {
    double mean = 0, squares = 0;
    for (const double value : values) mean += value / static_cast<double>(values.size());
    for (const double value : values) squares += (value - mean) * (value - mean);
    const double deviation = values.size() > 1 ? std::sqrt(squares / static_cast<double>(values.size() - 1)) : 0;
    *shift = mean;
    // Equal numbers deviate by their rounding.
    *scale = deviation > 1e-9 * std::abs(mean) ? 1 / deviation : 1;
  };
  model::RewardNormalization normalization;
  normalization.heads = heads_;
  for (size_t h = 0; h < heads_.size(); ++h) {
    std::vector<double> outputs_of_head;
    for (size_t i = h; i < rewards.size(); i += outputs()) outputs_of_head.push_back(rewards[i]);
    standardize(outputs_of_head, &normalization.heads[h].shift, &normalization.heads[h].scale);
  }
  std::vector<double> totals;
  for (size_t i = 0; i < rewards.size(); i += outputs()) totals.push_back(normalization.Apply(rewards.data() + i));
  standardize(totals, &normalization.shift, &normalization.scale);
  return normalization;
}

absl::StatusOr<std::map<std::string, v1::Metric>> RewardModelTrainer::Finish(const std::string& out_dir) {
  if (collective_->rank() != 0) return std::map<std::string, v1::Metric>();
  std::vector<std::vector<int32_t>> sequences;
  for (const ComparisonPair& pair : data_.held_out) {
    sequences.push_back(pair.chosen);
    sequences.push_back(pair.rejected);
  }
  const std::vector<double> rewards = ScoreSequences(model_->model(), sequences, spec().micro_batch_tokens());
  RLHF_ASSIGN_OR_RETURN(const model::RewardNormalization normalization, Normalize());
  const size_t width = outputs();
  std::vector<double> differences;
  std::vector<std::vector<double>> by_head(width);
  for (size_t i = 0; i < rewards.size(); i += 2 * width) {
    std::vector<double> of_pair;
    for (size_t h = 0; h < width; ++h) {
      of_pair.push_back(rewards[i + h] - rewards[i + width + h]);
      by_head[h].push_back(of_pair.back());
    }
    differences.push_back(Combine(normalization.heads, of_pair.data()));
  }
  RLHF_RETURN_IF_ERROR(SaveFinished(model_->model(), out_dir, inputs_.local.at(spec().model()), spec().model()));
  RLHF_RETURN_IF_ERROR(model::SaveRewardNormalization(normalization, out_dir));
  std::map<std::string, v1::Metric> metrics = RewardModelMetrics(data_.held_out, differences);
  for (size_t h = 0; h < heads_.size(); ++h)
    metrics.merge(CriterionMetrics(heads_[h].criterion, h, data_.held_out, by_head[h]));
  return metrics;
}

}  // namespace rlhf::learner
