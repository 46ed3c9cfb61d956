#include "learner/ppo_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "learner/batching.h"
#include "learner/kl/loss.h"
#include "learner/losses.h"
#include "learner/rewards.h"

namespace rlhf::learner {
namespace {

constexpr uint64_t kPtxStream = 3, kMinibatchStream = 4;

// While it lives, the policy is its base.
class AdaptersOff {
 public:
  explicit AdaptersOff(model::Transformer* model) : model_(model) { model_->SetAdaptersActive(false); }
  ~AdaptersOff() { model_->SetAdaptersActive(true); }
  AdaptersOff(const AdaptersOff&) = delete;
  AdaptersOff& operator=(const AdaptersOff&) = delete;

 private:
  model::Transformer* model_;
};

std::vector<size_t> All(size_t n) {
  std::vector<size_t> items(n);
  std::iota(items.begin(), items.end(), size_t{0});
  return items;
}

int64_t UpdatesOf(const v1::PpoSpec& spec) {
  const int64_t batch = static_cast<int64_t>(spec.prompts_per_step()) * spec.samples_per_prompt();
  const int64_t minibatch = spec.minibatch_size() > 0 ? spec.minibatch_size() : batch;
  return spec.epochs() * ((batch + minibatch - 1) / minibatch);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> PpoTrainer::Make(const TrainerInputs& inputs) {
  auto trainer = std::make_unique<PpoTrainer>();
  trainer->inputs_ = inputs;
  const v1::PpoSpec& spec = trainer->spec();
  const std::string& dir = inputs.local.at(spec.policy());
  const bool shard = inputs.spec.learners().shard_optimizer_state();
  const bool divide = inputs.spec.learners().shard_parameters();
  const int64_t critic_updates = spec.steps() * UpdatesOf(spec);
  const int64_t policy_updates = (spec.steps() - spec.critic_warmup_steps()) * UpdatesOf(spec);
  RLHF_ASSIGN_OR_RETURN(auto policy,
                        model::LoadModel(dir, {.dtype = DtypeOf(spec.precision()), .device = inputs.device}));
  RLHF_RETURN_IF_ERROR(SetUp(inputs.spec, spec.has_lora() ? &spec.lora() : nullptr, policy.get()));
  const int64_t context = policy->config().max_position_embeddings;
  trainer->policy_ = std::make_unique<Trainable>(std::move(policy), spec.policy_optimizer(), policy_updates, shard,
                                                 divide ? Layers::kDividedInSteps : Layers::kWhole);
  trainer->estimator_ = MakeAdvantageEstimator(spec.advantage());
  if (trainer->estimator_->needs_critic()) {
    model::LoadOptions load;
    load.dtype = DtypeOf(spec.precision());
    load.device = inputs.device;
    load.head = model::HeadKind::kScalar;
    load.init_missing_scalar_head = true;
    load.scalar_outputs = 1;  // of a reward model with a head for each criterion the body is taken, and no head
    load.head_seed = inputs.spec.seed();
    RLHF_ASSIGN_OR_RETURN(auto critic, model::LoadModel(inputs.local.at(spec.critic()), load));
    RLHF_RETURN_IF_ERROR(SetUp(inputs.spec, nullptr, critic.get()));
    trainer->critic_ = std::make_unique<Trainable>(std::move(critic), spec.critic_optimizer(), critic_updates, shard,
                                                   divide ? Layers::kDivided : Layers::kWhole);
  }
  trainer->kl_ = MakeKlController(spec.kl());
  if (spec.ptx().coefficient() > 0) {
    RLHF_ASSIGN_OR_RETURN(const auto tokenizer, artifact::Tokenizer::Load(dir));
    RLHF_ASSIGN_OR_RETURN(trainer->ptx_,
                          SupervisedData::Load(inputs.local.at(spec.ptx().data()), *tokenizer, context, 0));
  }
  return trainer;
}

// Old log-probabilities, values and, with adapters, the reference's log-probabilities: each rank computes its share,
// the sum of what they filled in is the whole.
absl::StatusOr<PpoTrainer::Before> PpoTrainer::Prepare(PpoBatch& batch) {
  const torch::NoGradGuard no_grad;
  torch::Tensor filled = torch::zeros({4, batch.rows()}, torch::kFloat32);
  const std::vector<size_t> mine = RankShare(All(batch.size()), collective_->rank(), collective_->world_size());
  const auto groups = MicroBatches(mine, batch.lengths, spec().micro_batch_tokens());
  RLHF_ASSIGN_OR_RETURN(const size_t passes, policy_->Passes(groups.size(), collective_));
  for (size_t pass = 0; pass < passes; ++pass) {
    if (collective_->aborted()) return absl::UnavailableError("collective: the group was given up before the updates");
    for (const auto& [prefix, part] : Parts()) RLHF_RETURN_IF_ERROR(part->weights_status());
    if (pass >= groups.size()) {
      for (const auto& [prefix, part] : Parts()) part->PassForward();
      continue;
    }
    const std::vector<size_t>& group = groups[pass];
    const PpoForward forward = PackSamples(batch, group, inputs_.device);
    const torch::Tensor rows = batch.RowIndex(group);
    const model::LogProbs old = model::ResponseLogProbs(policy_->model(), forward.packed, forward.index, temperature(),
                                                        /*with_entropy=*/true);
    filled[0].index_copy_(0, rows, old.log_probs.to(torch::kCPU));
    filled[1].index_copy_(0, rows, old.entropy.to(torch::kCPU));
    if (own_reference()) filled[3].index_copy_(0, rows, ReferenceLogProbs(forward).to(torch::kCPU));
    if (critic_) {
      const torch::Tensor critic_rows = critic_->model().Hidden(forward.packed, forward.index.rows);
      filled[2].index_copy_(0, rows, critic_->model().Scalar(critic_rows).to(torch::kCPU, torch::kFloat32));
    }
  }
  for (const auto& [prefix, part] : Parts()) RLHF_RETURN_IF_ERROR(part->weights_status());
  torch::Tensor shared = filled.to(inputs_.device);
  RLHF_RETURN_IF_ERROR(collective_->AllReduceSum(shared));
  filled = shared.to(torch::kCPU).contiguous();
  Before before;
  before.old_log_probs = filled[0].clone();
  before.entropy = filled[1].clone();
  if (critic_) before.values = filled[2].clone();
  if (own_reference()) batch.reference_log_probs = filled[3].clone();
  before.weights = ImportanceWeights(before.old_log_probs, batch.behaviour_log_probs, spec().max_importance_weight());
  ComputeAdvantages(batch, &before);
  return before;
}

torch::Tensor PpoTrainer::ReferenceLogProbs(const PpoForward& forward) {
  // The base alone is the reference: it is held once.
  const AdaptersOff off(&policy_->model());
  return model::ResponseLogProbs(policy_->model(), forward.packed, forward.index, temperature()).log_probs;
}

void PpoTrainer::ComputeAdvantages(const PpoBatch& batch, Before* before) const {
  const torch::NoGradGuard no_grad;
  before->kl = (before->old_log_probs - batch.reference_log_probs).to(torch::kFloat64).sum().item<double>() /
               static_cast<double>(batch.size());
  // What counts in the loss does not count in returns as well: divided by a group's deviation it would be anything.
  const double in_rewards = KlCountsInLoss(spec().kl()) ? 0 : kl_->coefficient();
  torch::Tensor rewards =
      TokenRewards(before->old_log_probs, batch.reference_log_probs, batch.counts, batch.scores, in_rewards);
  if (spec().whiten_rewards()) rewards = Whiten(rewards, MomentsOf(rewards), /*shift_mean=*/false);
  AdvantageInputs inputs;
  inputs.rewards = rewards;
  inputs.values = before->values;
  inputs.counts = batch.counts;
  const float* const data = rewards.data_ptr<float>();
  for (size_t i = 0; i < batch.size(); ++i) {
    inputs.batch_returns.push_back(
        std::accumulate(data + batch.offsets[i], data + batch.offsets[i] + batch.counts[i], 0.0));
  }
  inputs.samples_per_prompt = spec().samples_per_prompt();
  inputs.gamma = spec().gamma();
  inputs.lambda = spec().lambda();
  before->advantages = estimator_->Compute(inputs);
  if (critic_) {
    before->explained_variance = ExplainedVariance(before->values, before->advantages.returns);
  }
  if (spec().whiten_advantages()) {
    const torch::Tensor& advantages = before->advantages.advantages;
    before->advantages.advantages = Whiten(advantages, MomentsOf(advantages));
  }
}

std::vector<Trainable::LossTerm> PpoTrainer::PolicyTerms(const PpoBatch& batch, const Before& before,
                                                         const std::vector<size_t>& items, bool first, Sums* sums) {
  const auto rows = static_cast<double>(batch.RowsOf(items));
  const std::vector<size_t> mine = RankShare(items, collective_->rank(), collective_->world_size());
  std::vector<Trainable::LossTerm> terms;
  for (std::vector<size_t>& group : MicroBatches(mine, batch.lengths, spec().micro_batch_tokens())) {
    terms.push_back([this, &batch, &before, rows, first, sums, group = std::move(group)] {
      const PpoForward forward = PackSamples(batch, group, inputs_.device);
      const torch::Tensor index = batch.RowIndex(group);
      const auto pick = [&](const torch::Tensor& all) { return all.index_select(0, index).to(inputs_.device); };
      const torch::Tensor hidden = policy_->model().Hidden(forward.packed, forward.index.rows);
      const bool rewards_entropy = spec().entropy_coefficient() != 0;
      const auto [log_probs, entropy] =
          model::ChunkedLogProbs(policy_->model(), hidden, forward.index.targets, temperature(), rewards_entropy);
      PolicyLossOptions options;
      options.clip_low = spec().clip_range();
      options.clip_high = spec().clip_range_high();
      options.dual_clip = spec().dual_clip();
      const PolicyLossSums loss = PolicyLoss(log_probs, pick(before.old_log_probs), pick(before.advantages.advantages),
                                             pick(before.weights), options);
      sums->policy_loss += loss.loss.item<double>() / rows;
      sums->clipped += loss.clipped.item<double>();
      sums->approx_kl += loss.approx_kl.item<double>();
      if (first) sums->first_ratio_error = std::max(sums->first_ratio_error, loss.ratio_error.item<double>());
      torch::Tensor total = loss.loss;
      if (KlCountsInLoss(spec().kl())) {
        const torch::Tensor kl = KlLossSum(log_probs, pick(batch.reference_log_probs), spec().kl().form());
        sums->kl_loss += kl.item<double>() / rows;
        total = total + kl_->coefficient() * kl;
      }
      if (rewards_entropy) total = total - spec().entropy_coefficient() * entropy.sum();
      return total / rows;
    });
  }
  return terms;
}

std::vector<Trainable::LossTerm> PpoTrainer::CriticTerms(const PpoBatch& batch, const Before& before,
                                                         const std::vector<size_t>& items, Sums* sums) {
  const auto rows = static_cast<double>(batch.RowsOf(items));
  const std::vector<size_t> mine = RankShare(items, collective_->rank(), collective_->world_size());
  std::vector<Trainable::LossTerm> terms;
  for (std::vector<size_t>& group : MicroBatches(mine, batch.lengths, spec().micro_batch_tokens())) {
    terms.push_back([this, &batch, &before, rows, sums, group = std::move(group)] {
      const PpoForward forward = PackSamples(batch, group, inputs_.device);
      const torch::Tensor index = batch.RowIndex(group);
      const torch::Tensor hidden = critic_->model().Hidden(forward.packed, forward.index.rows);
      const torch::Tensor values = critic_->model().Scalar(hidden).to(torch::kFloat32);
      const ValueLossSums loss =
          ValueLoss(values, before.values.index_select(0, index).to(inputs_.device),
                    before.advantages.returns.index_select(0, index).to(inputs_.device), spec().value_clip_range());
      sums->value_loss += loss.loss.item<double>() / rows;
      return spec().value_coefficient() * loss.loss / rows;
    });
  }
  return terms;
}

void PpoTrainer::AppendPtxTerms(Sums* sums, std::vector<Trainable::LossTerm>* terms) {
  const std::vector<size_t> lines =
      ItemsOf(ptx_.size(), inputs_.spec.seed(), kPtxStream, ptx_cursor_, spec().ptx().batch_size());
  ptx_cursor_ += spec().ptx().batch_size();
  const double weight = ptx_.Weight(lines);
  const std::vector<size_t> mine = RankShare(lines, collective_->rank(), collective_->world_size());
  for (std::vector<size_t>& group : MicroBatches(mine, ptx_.lengths(), spec().micro_batch_tokens())) {
    terms->push_back([this, weight, sums, group = std::move(group)] {
      const torch::Tensor loss = ptx_.WeightedNll(policy_->model(), group) / weight;
      sums->ptx_loss += loss.item<double>();
      return spec().ptx().coefficient() * loss;
    });
  }
}

absl::StatusOr<std::string> PpoTrainer::Update(const PpoBatch& batch, const Before& before,
                                               const std::vector<size_t>& items, bool first, Sums* sums) {
  double policy_loss = 0, policy_norm = 0, critic_loss = 0, critic_norm = 0;
  if (before.trains_policy) {
    std::vector<Trainable::LossTerm> terms = PolicyTerms(batch, before, items, first, sums);
    if (ptx_.size() > 0) AppendPtxTerms(sums, &terms);
    RLHF_ASSIGN_OR_RETURN(policy_loss, policy_->Accumulate(terms, collective_));
  }
  if (critic_) {
    RLHF_ASSIGN_OR_RETURN(critic_loss, critic_->Accumulate(CriticTerms(batch, before, items, sums), collective_));
  }
  if (before.trains_policy) {
    RLHF_ASSIGN_OR_RETURN(policy_norm, policy_->FinishSums(collective_));
  }
  if (critic_) {
    RLHF_ASSIGN_OR_RETURN(critic_norm, critic_->FinishSums(collective_));
  }
  const bool finite = std::isfinite(policy_loss) && std::isfinite(critic_loss) && std::isfinite(policy_norm) &&
                      std::isfinite(critic_norm) && RLHF_FAILPOINT_OK("learner/nonfinite");
  RLHF_ASSIGN_OR_RETURN(const bool all_finite, collective_->Vote(finite));
  if (!all_finite) {
    return finite ? std::string("a loss or gradient of another rank is not finite")
                  : absl::StrCat("not finite on rank ", collective_->rank(), ": policy loss ", policy_loss,
                                 ", critic loss ", critic_loss, ", gradient norms ", policy_norm, " and ", critic_norm);
  }
  if (before.trains_policy) RLHF_RETURN_IF_ERROR(policy_->Step(policy_norm, collective_));
  if (critic_) RLHF_RETURN_IF_ERROR(critic_->Step(critic_norm, collective_));
  sums->policy_norm += policy_norm;
  sums->critic_norm += critic_norm;
  sums->rows += static_cast<double>(batch.RowsOf(items));
  sums->updates += 1;
  return std::string();
}

absl::StatusOr<StepResult> PpoTrainer::RunStep(int64_t step, const std::vector<v1::Sample>& samples) {
  RLHF_ASSIGN_OR_RETURN(PpoBatch batch,
                        PpoBatch::FromSamples(samples, spec(), policy_->model().config().max_position_embeddings));
  for (const auto& [prefix, part] : Parts()) part->BeginStep(collective_);
  kl_before_ = kl_->coefficient();
  ptx_cursor_before_ = ptx_cursor_;
  StepResult result;
  const double rate = policy_->optimizer().learning_rate();
  const double critic_rate = critic_ ? critic_->optimizer().learning_rate() : 0;
  Sums sums;
  Before before;
  const auto train = [&]() -> absl::Status {
    RLHF_ASSIGN_OR_RETURN(before, Prepare(batch));
    before.trains_policy = step > spec().critic_warmup_steps();
    const size_t minibatch = spec().minibatch_size() > 0 ? static_cast<size_t>(spec().minibatch_size()) : batch.size();
    for (int epoch = 0; epoch < spec().epochs(); ++epoch) {
      const std::vector<size_t> order = Permutation(
          batch.size(), inputs_.spec.seed(), kMinibatchStream,
          static_cast<uint64_t>(step) * static_cast<uint64_t>(spec().epochs()) + static_cast<uint64_t>(epoch));
      for (size_t begin = 0; begin < order.size(); begin += minibatch) {
        const std::vector<size_t> items(
            order.begin() + static_cast<std::ptrdiff_t>(begin),
            order.begin() + static_cast<std::ptrdiff_t>(std::min(order.size(), begin + minibatch)));
        RLHF_ASSIGN_OR_RETURN(result.refusal, Update(batch, before, items, epoch == 0 && begin == 0, &sums));
        if (!result.refusal.empty()) return absl::OkStatus();
      }
    }
    RLHF_RETURN_IF_ERROR(Report(batch, before, samples, &sums, &result));
    return SelfCheck(batch, before, sums.first_ratio_error);
  };
  const absl::Status status = train();
  if (!status.ok() || !result.refusal.empty()) {
    RevertStep();
    RLHF_RETURN_IF_ERROR(status);
    for (const auto& [prefix, part] : Parts()) {
      RLHF_RETURN_IF_ERROR(part->optimizer().GatherParameters(collective_));
      RLHF_RETURN_IF_ERROR(part->EndStep(collective_));
    }
    return result;
  }
  for (const auto& [prefix, part] : Parts()) {
    if (const absl::Status ended = part->EndStep(collective_); !ended.ok()) {
      RevertStep();
      return ended;
    }
  }
  if (critic_) result.metrics["learning_rate/critic"] = critic_rate;
  if (before.trains_policy) {
    result.metrics["learning_rate"] = rate;
    kl_->Update(before.kl, static_cast<int64_t>(batch.size()));
  }
  result.trained = true;
  if (spec().early_stop().max_kl() > 0 && before.kl > spec().early_stop().max_kl()) {
    result.stop = true;
    result.stop_reason = absl::StrCat("the KL from the reference is ", before.kl,
                                      " nats a sequence, above early_stop.max_kl ", spec().early_stop().max_kl());
  }
  return result;
}

absl::Status PpoTrainer::Report(const PpoBatch& batch, const Before& before, const std::vector<v1::Sample>& samples,
                                Sums* sums, StepResult* result) {
  std::vector<double> shared{sums->policy_loss, sums->value_loss, sums->ptx_loss,
                             sums->clipped,     sums->approx_kl,  sums->kl_loss};
  const size_t ratios = shared.size();
  shared.resize(ratios + static_cast<size_t>(collective_->world_size()), 0.0);
  shared[ratios + static_cast<size_t>(collective_->rank())] = sums->first_ratio_error;
  RLHF_RETURN_IF_ERROR(SumOverRanks(&shared, inputs_.device, collective_));
  sums->first_ratio_error = *std::max_element(shared.begin() + static_cast<std::ptrdiff_t>(ratios), shared.end());

  std::map<std::string, double>& m = result->metrics;
  if (before.trains_policy) {
    m["loss/policy"] = shared[0] / sums->updates;
    if (ptx_.size() > 0) m["loss/ptx"] = shared[2] / sums->updates;
    if (KlCountsInLoss(spec().kl())) m["loss/kl"] = shared[5] / sums->updates;
    m["clip_ratio"] = shared[3] / sums->rows;
    m["approx_kl"] = shared[4] / sums->rows;
    m["first_minibatch_ratio_error"] = sums->first_ratio_error;
    m["grad_norm/policy"] = sums->policy_norm / sums->updates;
  }
  if (critic_) {
    m["loss/value"] = shared[1] / sums->updates;
    m["grad_norm/critic"] = sums->critic_norm / sums->updates;
    m["explained_variance"] = before.explained_variance;
  }
  m["kl"] = before.kl;
  m["kl_coefficient"] = kl_->coefficient();
  m["entropy"] = before.entropy.mean().item<double>();
  const torch::Tensor log_r = (before.old_log_probs - batch.behaviour_log_probs).to(torch::kFloat64);
  m["mismatch_kl"] = (log_r.expm1() - log_r).mean().item<double>();
  m["importance_weight/mean"] = before.weights.mean().item<double>();
  const auto n = static_cast<double>(samples.size());
  double total = 0, squares = 0, gold = 0, ended = 0;
  bool any_gold = false;
  for (const v1::Sample& sample : samples) {
    total += sample.score().total() / n;
    gold += sample.score().gold_total() / n;
    any_gold = any_gold || !sample.score().gold().empty();
    ended += (sample.finish_reason() == v1::MAX_TOKENS ? 0.0 : 1.0) / n;
    for (const v1::ComponentScore& component : sample.score().components())
      m[absl::StrCat("component/", component.name())] += component.value() / n;
    for (const v1::ComponentScore& component : sample.score().gold())
      m[absl::StrCat("gold/", component.name())] += component.value() / n;
  }
  double kept = 0, truncated = 0;  // tokens that were drawn with top-p or top-k
  for (const v1::Sample& sample : samples) {
    for (const float log_mass : sample.log_kept_mass()) kept += std::exp(static_cast<double>(log_mass));
    truncated += sample.log_kept_mass_size();
  }
  if (truncated > 0) m["kept_mass"] = kept / truncated;
  for (const v1::Sample& sample : samples)
    squares += (sample.score().total() - total) * (sample.score().total() - total);
  m["reward/mean"] = total;
  m["reward/std"] = n > 1 ? std::sqrt(squares / (n - 1)) : 0;
  if (any_gold) m["gold/mean"] = gold;
  m["response_length"] = static_cast<double>(batch.rows()) / n;
  m["eos_ratio"] = ended;
  m["tokens"] = static_cast<double>(std::accumulate(batch.lengths.begin(), batch.lengths.end(), int64_t{0}));
  return absl::OkStatus();
}

absl::Status PpoTrainer::SelfCheck(const PpoBatch& batch, const Before& before, double ratio_error) const {
  const double apart = (before.old_log_probs - batch.behaviour_log_probs).abs().max().item<double>();
  if (inputs_.spec.deterministic() && spec().max_policy_lag() == 0 && apart != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "deterministic: the sampler's log-probabilities and the learner's differ by up to ", apart,
        ", expected 0; a rollout worker computes with another instruction set or build than this learner (",
        NumericsOf(inputs_.spec, collective_->world_size()), ")"));
  }
  if (!(ratio_error <= spec().max_first_minibatch_ratio_error())) {
    return absl::FailedPreconditionError(
        absl::StrCat("self-check: in the first minibatch old and new log-probabilities must agree; the largest error "
                     "of their ratio is ",
                     ratio_error, ", expected at most ", spec().max_first_minibatch_ratio_error(),
                     " (ppo.max_first_minibatch_ratio_error)"));
  }
  return absl::OkStatus();
}

void PpoTrainer::RevertStep() {
  policy_->optimizer().RestoreSnapshot();
  if (critic_) critic_->optimizer().RestoreSnapshot();
  kl_->set_coefficient(kl_before_);
  ptx_cursor_ = ptx_cursor_before_;
}

std::vector<std::pair<std::string, Trainable*>> PpoTrainer::Parts() const {
  std::vector<std::pair<std::string, Trainable*>> parts = {{"policy", policy_.get()}};
  if (critic_) parts.emplace_back("critic", critic_.get());
  return parts;
}

State PpoTrainer::CheckpointState() const {
  State state;
  for (const auto& [prefix, part] : Parts()) part->AppendState(prefix, &state);
  return state;
}

StateSource PpoTrainer::Source() const {
  return [this](const StateVisitor& visitor) {
    absl::Status visited;
    for (const auto& [prefix, part] : Parts()) visited.Update(part->VisitState(prefix, collective_, visitor));
    return visited;
  };
}

std::vector<double> PpoTrainer::Numbers() const {
  return {static_cast<double>(policy_->optimizer().updates()),
          critic_ ? static_cast<double>(critic_->optimizer().updates()) : 0.0, kl_->coefficient(),
          static_cast<double>(ptx_cursor_)};
}

void PpoTrainer::SetNumbers(const std::vector<double>& numbers) {
  policy_->optimizer().set_updates(static_cast<int64_t>(numbers[0]));
  if (critic_) critic_->optimizer().set_updates(static_cast<int64_t>(numbers[1]));
  kl_->set_coefficient(numbers[2]);
  ptx_cursor_ = static_cast<int64_t>(numbers[3]);
}

absl::Status PpoTrainer::SaveCheckpoint(const std::string& dir) const {
  if (collective_ != nullptr && collective_->rank() != 0) return Source()(IgnoreState);
  return WriteCheckpoint(dir, CheckpointState(), Source(), {{"kind", "ppo"}, {"numbers", Numbers()}});
}

absl::Status PpoTrainer::LoadCheckpoint(const std::string& dir) {
  for (const auto& [prefix, part] : Parts()) part->ExpectState(collective_);
  nlohmann::json state;
  RLHF_RETURN_IF_ERROR(ReadCheckpoint(dir, CheckpointState(), &state));
  const auto numbers = state.value("numbers", std::vector<double>());
  if (numbers.size() != Numbers().size())
    return absl::DataLossError(absl::StrCat("checkpoint ", dir, ": state.json has no \"numbers\" of a PPO job"));
  SetNumbers(numbers);
  return absl::OkStatus();
}

absl::StatusOr<std::string> PpoTrainer::Digest() const {
  return StateDigest(CheckpointState(), Source(), Numbers());
}

absl::Status PpoTrainer::SyncFrom(const std::vector<int>& owners) {
  std::vector<double> numbers = Numbers();
  RLHF_RETURN_IF_ERROR(SyncState(Parts(), &numbers, inputs_.device, owners, collective_));
  SetNumbers(numbers);
  return absl::OkStatus();
}

absl::StatusOr<std::map<std::string, v1::Metric>> PpoTrainer::Finish(const std::string& out_dir) {
  if (collective_->rank() == 0)
    RLHF_RETURN_IF_ERROR(SaveFinished(policy_->model(), out_dir, inputs_.local.at(spec().policy()), spec().policy()));
  return std::map<std::string, v1::Metric>();
}

}  // namespace rlhf::learner
