#include "reward_server/scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "artifact/prompt.h"
#include "artifact/sample_digest.h"
#include "common/canonical_bytes.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "model/guard.h"
#include "model/log_probs.h"
#include "model/split_by_tokens.h"
#include "reward_server/components/ensemble.h"

namespace rlhf::reward {
namespace {

bool AnyModel(const v1::ScorerSpec& spec) {
  return std::any_of(spec.components().begin(), spec.components().end(),
                     [](const v1::RewardComponent& one) { return one.has_reward_model() || one.has_ensemble(); });
}

void Fail(const absl::Status& status, v1::SampleScore* score) {
  score->clear_score();
  score->set_code(static_cast<int>(status.code()));
  score->set_error(std::string(status.message()));
}

}  // namespace

struct Scorer::Loaded {
  std::unique_ptr<model::Transformer> model;
  std::unique_ptr<artifact::Tokenizer> tokenizer;
  model::RewardNormalization normalization;
  std::string tokenizer_json;
  uint64_t last_use = 0;
};

// The normalised score of a reward model, read at the last token up to and including the end of text.
// A model with a head for each criterion gives the heads' normalised scores as parts; `criteria` may weigh them anew.
class RewardModelScore : public Component {
 public:
  RewardModelScore(Scorer* scorer, std::string digest, std::string policy, std::map<std::string, double> criteria = {})
      : scorer_(scorer), digest_(std::move(digest)), policy_(std::move(policy)), criteria_(std::move(criteria)) {}

  std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) override {
    std::vector<absl::StatusOr<double>> values(samples.size(), 0.0);
    const absl::Status status = model::Guard("reward model", [&] { return Compute(samples, &values); });
    if (!status.ok()) return std::vector<absl::StatusOr<double>>(samples.size(), status);
    return values;
  }
  const std::vector<std::vector<double>>* parts() const override { return parts_.empty() ? nullptr : &parts_; }
  std::string PartName(size_t part) const override { return names_[part]; }

 private:
  // A status of all samples is the model's; one that only a sample has goes to its place.
  absl::Status Compute(const std::vector<const v1::Sample*>& samples, std::vector<absl::StatusOr<double>>* values) {
    const c10::InferenceMode inference;
    RLHF_ASSIGN_OR_RETURN(Scorer::Loaded * loaded, scorer_->Load(digest_, model::HeadKind::kScalar));
    RLHF_RETURN_IF_ERROR(loaded->model->SetDeterministic(scorer_->deterministic_));
    const std::vector<model::RewardHead>& heads = loaded->normalization.heads;
    RLHF_RETURN_IF_ERROR(CheckCriteria(heads));
    parts_.assign(heads.size(), std::vector<double>(samples.size(), 0));
    names_.clear();
    for (const model::RewardHead& head : heads) names_.push_back(head.criterion);
    RLHF_ASSIGN_OR_RETURN(const bool same_tokens, SameTokens(*loaded));
    std::vector<std::vector<int32_t>> sequences;
    std::vector<size_t> places;  // of their samples
    for (size_t i = 0; i < samples.size(); ++i) {
      absl::StatusOr<std::vector<int32_t>> tokens = TokensOf(*samples[i], *loaded, same_tokens);
      if (!tokens.ok()) {
        (*values)[i] = tokens.status();
        continue;
      }
      sequences.push_back(*std::move(tokens));
      places.push_back(i);
    }
    auto place = places.begin();
    for (const auto& [begin, end] : model::SplitByTokens(sequences, scorer_->options_.batch_tokens)) {
      const std::vector<std::vector<int32_t>> part(sequences.begin() + static_cast<int64_t>(begin),
                                                   sequences.begin() + static_cast<int64_t>(end));
      const model::PackedBatch batch = model::PackedBatch::FromSequences(part, scorer_->options_.device);
      const torch::Tensor rows = loaded->model->Hidden(batch, batch.LastRows());
      const torch::Tensor raw = loaded->model->Scalar(rows).to(torch::kCPU, torch::kFloat64).contiguous();
      const auto width = static_cast<int64_t>(std::max<size_t>(1, heads.size()));
      for (int64_t i = 0; i < raw.numel(); i += width, ++place) {
        const double* outputs = raw.data_ptr<double>() + i;
        (*values)[*place] = criteria_.empty() ? loaded->normalization.Apply(outputs) : Weighted(heads, outputs);
        for (size_t h = 0; h < heads.size(); ++h) parts_[h][*place] = heads[h].Normalize(outputs[h]);
      }
    }
    return absl::OkStatus();
  }

  // Prompt and response as the reward model reads them; InvalidArgument when they are more than its context.
  absl::StatusOr<std::vector<int32_t>> TokensOf(const v1::Sample& sample, const Scorer::Loaded& loaded,
                                                bool same_tokens) const {
    std::vector<int32_t> tokens;
    if (same_tokens) {
      tokens.assign(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
      tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    } else {
      // Another vocabulary: the same text in the reward model's own tokens.
      RLHF_ASSIGN_OR_RETURN(tokens, artifact::EncodePrompt(*loaded.tokenizer, sample.prompt().text(),
                                                           artifact::MessagesOf(sample.prompt())));
      RLHF_ASSIGN_OR_RETURN(const std::vector<int32_t> response,
                            loaded.tokenizer->Encode(sample.response_text(), {.add_special_tokens = false}));
      tokens.insert(tokens.end(), response.begin(), response.end());
      if (sample.finish_reason() == v1::END_OF_TEXT && loaded.tokenizer->eos_id())
        tokens.push_back(*loaded.tokenizer->eos_id());
    }
    const int64_t context = loaded.model->config().max_position_embeddings;
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) > context) {
      return absl::InvalidArgumentError(absl::StrCat("reward model ", digest_, ": sample ",
                                                     artifact::SampleName(sample.id()), " has ", tokens.size(),
                                                     " tokens; expected 1 to ", context));
    }
    return tokens;
  }

  absl::Status CheckCriteria(const std::vector<model::RewardHead>& heads) const {
    for (const auto& [criterion, weight] : criteria_) {
      const bool known = std::any_of(heads.begin(), heads.end(),
                                     [&, name = criterion](const auto& head) { return head.criterion == name; });
      if (known) continue;
      std::string names;
      for (const model::RewardHead& head : heads) absl::StrAppend(&names, names.empty() ? "" : ", ", head.criterion);
      return absl::InvalidArgumentError(absl::StrCat(
          "criteria: reward model ", digest_, " has no head for \"", criterion, "\"; expected one of its criteria (",
          names.empty() ? "it has none: train it with criterion_heads" : names, ")"));
    }
    return absl::OkStatus();
  }
  double Weighted(const std::vector<model::RewardHead>& heads, const double* outputs) const {
    double sum = 0;
    for (size_t h = 0; h < heads.size(); ++h) {
      if (const auto weight = criteria_.find(heads[h].criterion); weight != criteria_.end())
        sum += weight->second * heads[h].Normalize(outputs[h]);
    }
    return sum;
  }
  absl::StatusOr<bool> SameTokens(const Scorer::Loaded& reward_model) {
    if (policy_ == digest_) return true;
    if (same_tokens_) return *same_tokens_;
    RLHF_ASSIGN_OR_RETURN(const std::string dir, scorer_->artifacts_->Fetch(policy_));
    RLHF_ASSIGN_OR_RETURN(const std::string json, ReadFile(dir + "/tokenizer.json"));
    same_tokens_ = json == reward_model.tokenizer_json;
    return *same_tokens_;
  }

  Scorer* scorer_;
  std::string digest_, policy_;
  const std::map<std::string, double> criteria_;
  std::vector<std::vector<double>> parts_;  // by head and sample
  std::vector<std::string> names_;
  std::optional<bool> same_tokens_;
};

absl::Status CheckSuits(const ScorerOptions& options, const v1::ScoreRequest& request) {
  const bool models = !request.reference_policy().empty() || AnyModel(request.scorer()) || AnyModel(request.gold());
  if (!request.deterministic() || !models || (options.dtype == torch::kFloat32 && options.device.is_cpu()))
    return absl::OkStatus();
  return UnsuitedError(
      absl::StrCat("a deterministic job needs scores with the same bits everywhere; this reward server computes ",
                   options.device.is_cpu() ? "with another precision" : "on a GPU",
                   ": start this server with --device cpu --precision float32"));
}

Scorer::Scorer(client::ArtifactCache* artifacts, const ScorerOptions& options)
    : artifacts_(artifacts), options_(options) {}
Scorer::~Scorer() = default;

absl::StatusOr<Scorer::Loaded*> Scorer::Load(const std::string& digest, model::HeadKind head) {
  const std::string key = absl::StrCat(digest, head == model::HeadKind::kLm ? "/lm" : "/scalar");
  if (const auto found = models_.find(key); found != models_.end()) {
    found->second->last_use = ++uses_;
    return found->second.get();
  }
  RLHF_ASSIGN_OR_RETURN(const std::string dir, artifacts_->Fetch(digest));
  auto loaded = std::make_unique<Loaded>();
  model::LoadOptions load;
  load.dtype = options_.dtype;
  load.device = options_.device;
  load.head = head;
  load.join_projections = true;
  RLHF_ASSIGN_OR_RETURN(loaded->model, model::LoadModel(dir, load));
  RLHF_ASSIGN_OR_RETURN(loaded->tokenizer, artifact::Tokenizer::Load(dir));
  RLHF_ASSIGN_OR_RETURN(loaded->tokenizer_json, ReadFile(dir + "/tokenizer.json"));
  if (head == model::HeadKind::kScalar) {
    RLHF_ASSIGN_OR_RETURN(loaded->normalization, model::LoadRewardNormalization(dir));
    RLHF_RETURN_IF_ERROR(model::CheckRewardHeads(*loaded->model, loaded->normalization, digest));
  }
  while (static_cast<int>(models_.size()) >= options_.max_models) {
    models_.erase(std::min_element(models_.begin(), models_.end(), [](const auto& a, const auto& b) {
      return a.second->last_use < b.second->last_use;
    }));
  }
  loaded->last_use = ++uses_;
  return (models_[key] = std::move(loaded)).get();
}

absl::StatusOr<std::unique_ptr<Component>> Scorer::MakeComponent(const v1::RewardComponent& spec,
                                                                 const std::string& policy) {
  switch (spec.kind_case()) {
    case v1::RewardComponent::kRewardModel:
      return std::make_unique<RewardModelScore>(
          this, spec.reward_model().model(), policy,
          std::map<std::string, double>(spec.reward_model().criteria().begin(), spec.reward_model().criteria().end()));
    case v1::RewardComponent::kRegex:
      return MakeRegex(spec.regex());
    case v1::RewardComponent::kLength:
      return MakeLength(spec.length());
    case v1::RewardComponent::kExactAnswer:
      return MakeExactAnswer(spec.exact_answer());
    case v1::RewardComponent::kAbstention:
      return MakeAbstention(spec.abstention());
    case v1::RewardComponent::kActionClaim:
      return MakeActionClaim(spec.action_claim());
    case v1::RewardComponent::kExternal:
      return MakeExternal(spec.name(), spec.external());
    case v1::RewardComponent::kSentenceShare:
      return MakeSentenceShare(spec.sentence_share());
    case v1::RewardComponent::kEnsemble: {
      std::vector<std::unique_ptr<Component>> members;
      for (const std::string& model : spec.ensemble().models())
        members.push_back(std::make_unique<RewardModelScore>(this, model, policy));
      if (members.empty()) return absl::InvalidArgumentError("an ensemble has no models; expected at least two");
      return std::make_unique<Ensemble>(spec.ensemble().rule(), spec.ensemble().coefficient(), std::move(members));
    }
    case v1::RewardComponent::KIND_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("reward component \"", spec.name(),
                   "\" has no kind; expected one of reward_model, ensemble, regex, "
                   "length, exact_answer, abstention, action_claim, external, sentence_share"));
}

void Scorer::ScoreComponents(const v1::ScorerSpec& spec, const v1::ScoreRequest& request, bool gold,
                             std::vector<v1::SampleScore>* scores) {
  for (const v1::RewardComponent& component_spec : spec.components()) {
    std::vector<const v1::Sample*> samples;
    std::vector<v1::SampleScore*> targets;
    for (int i = 0; i < request.samples_size(); ++i) {
      if ((*scores)[i].code() != 0) continue;
      samples.push_back(&request.samples(i));
      targets.push_back(&(*scores)[i]);
    }
    if (samples.empty()) return;
    const std::string key = absl::StrCat(request.tokenizer(), "\n", CanonicalBytes(component_spec));
    auto& component = components_[key];
    if (!component) {
      auto made = MakeComponent(component_spec, request.tokenizer());
      if (!made.ok()) {
        components_.erase(key);
        for (v1::SampleScore* target : targets)
          Fail(Annotate(made.status(), absl::StrCat("component \"", component_spec.name(), "\"")), target);
        return;
      }
      component = *std::move(made);
    }
    const std::vector<absl::StatusOr<double>> values = component->Score(samples);
    const double weight = component_spec.has_weight() ? component_spec.weight() : 1.0;
    for (size_t i = 0; i < targets.size(); ++i) {
      if (!values[i].ok()) {
        Fail(Annotate(values[i].status(), absl::StrCat("component \"", component_spec.name(), "\"")), targets[i]);
        continue;
      }
      if (!std::isfinite(*values[i])) {
        Fail(absl::InternalError(absl::StrCat("component \"", component_spec.name(), "\" gave ", *values[i],
                                              "; expected a finite number")),
             targets[i]);
        continue;
      }
      v1::Score& score = *targets[i]->mutable_score();
      v1::ComponentScore& entry = gold ? *score.add_gold() : *score.add_components();
      entry.set_name(component_spec.name());
      entry.set_value(*values[i]);
      entry.set_weight(weight);
      if (component->parts() != nullptr) {
        for (size_t part = 0; part < component->parts()->size(); ++part) {
          v1::ComponentScore& member = gold ? *score.add_gold() : *score.add_components();
          member.set_name(absl::StrCat(component_spec.name(), "/", component->PartName(part)));
          member.set_value((*component->parts())[part][i]);
        }
      }
      if (gold) {
        score.set_gold_total(score.gold_total() + weight * *values[i]);
      } else {
        score.set_total(score.total() + weight * *values[i]);
      }
    }
  }
}

absl::Status Scorer::AddReference(const v1::ScoreRequest& request, std::vector<v1::SampleScore>* scores) {
  const c10::InferenceMode inference;
  RLHF_ASSIGN_OR_RETURN(Loaded * loaded, Load(request.reference_policy(), model::HeadKind::kLm));
  RLHF_RETURN_IF_ERROR(loaded->model->SetDeterministic(deterministic_));
  std::vector<std::vector<int32_t>> sequences;
  std::vector<int64_t> begins;
  std::vector<v1::SampleScore*> targets;
  for (int i = 0; i < request.samples_size(); ++i) {
    if ((*scores)[i].code() != 0 || request.samples(i).response_tokens().empty()) continue;
    const v1::Sample& sample = request.samples(i);
    std::vector<int32_t>& tokens = sequences.emplace_back(sample.prompt_tokens().begin(), sample.prompt_tokens().end());
    tokens.insert(tokens.end(), sample.response_tokens().begin(), sample.response_tokens().end());
    begins.push_back(sample.prompt_tokens_size());
    targets.push_back(&(*scores)[i]);
  }
  const double temperature = request.temperature() > 0 ? request.temperature() : 1.0;
  for (const auto& [first, last] : model::SplitByTokens(sequences, options_.batch_tokens)) {
    const std::vector<std::vector<int32_t>> part(sequences.begin() + static_cast<int64_t>(first),
                                                 sequences.begin() + static_cast<int64_t>(last));
    const std::vector<int64_t> part_begins(begins.begin() + static_cast<int64_t>(first),
                                           begins.begin() + static_cast<int64_t>(last));
    const model::PackedBatch batch = model::PackedBatch::FromSequences(part, options_.device);
    const model::ResponseIndex index = model::IndexResponses(batch, part_begins);
    const torch::Tensor log_probs =
        model::ResponseLogProbs(*loaded->model, batch, index, temperature).log_probs.to(torch::kCPU).contiguous();
    const float* value = log_probs.data_ptr<float>();
    for (size_t i = 0; i < part.size(); ++i) {
      auto& target = *targets[first + i]->mutable_score()->mutable_reference_log_probs();
      target.Add(value, value + index.counts[i]);
      value += index.counts[i];
    }
  }
  return absl::OkStatus();
}

v1::ScoreResponse Scorer::Score(const v1::ScoreRequest& request) {
  deterministic_ = request.deterministic();
  std::vector<v1::SampleScore> scores(request.samples_size());
  for (int i = 0; i < request.samples_size(); ++i) {
    *scores[i].mutable_id() = request.samples(i).id();
    scores[i].set_attempt(request.samples(i).attempt());
    scores[i].mutable_score();
  }
  ScoreComponents(request.scorer(), request, /*gold=*/false, &scores);
  ScoreComponents(request.gold(), request, /*gold=*/true, &scores);
  if (!request.reference_policy().empty()) {
    const absl::Status status = model::Guard("reference policy", [&] { return AddReference(request, &scores); });
    if (!status.ok()) {
      for (v1::SampleScore& score : scores) {
        if (score.code() == 0) Fail(status, &score);
      }
    }
  }
  v1::ScoreResponse response;
  for (v1::SampleScore& score : scores) *response.add_scores() = std::move(score);
  return response;
}

}  // namespace rlhf::reward
