#include "reward_server/scorer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <c10/core/InferenceMode.h>

#include "absl/strings/str_cat.h"
#include "common/canonical_bytes.h"
#include "common/known_fields.h"
#include "common/status_util.h"
#include "common/stuck_watch.h"
#include "common/unsuited.h"
#include "model/guard.h"
#include "model/log_probs.h"
#include "model/split_by_tokens.h"
#include "reward_server/components/ensemble.h"
#include "reward_server/components/reward_model.h"

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

absl::Status CheckSuits(const ScorerOptions& options, const v1::ScoreRequest& request) {
  RLHF_RETURN_IF_ERROR(CheckKnown(request.scorer(), "the job's scorer", "this reward server"));
  RLHF_RETURN_IF_ERROR(CheckKnown(request.gold(), "the job's gold scorer", "this reward server"));
  const bool models = !request.reference_policy().empty() || AnyModel(request.scorer()) || AnyModel(request.gold());
  if (!request.deterministic() || !models || (options.dtype == torch::kFloat32 && options.device.is_cpu()))
    return absl::OkStatus();
  return UnsuitedError(
      absl::StrCat("a deterministic job needs scores with the same bits everywhere; this reward server computes ",
                   options.device.is_cpu() ? "with another precision" : "on a GPU",
                   ": start this server with --device cpu --precision float32"));
}

absl::StatusOr<std::unique_ptr<Component>> Scorer::MakeComponent(const v1::RewardComponent& spec,
                                                                 const std::string& policy) {
  switch (spec.kind_case()) {
    case v1::RewardComponent::kRewardModel:
      return MakeRewardModel(&models_, spec.reward_model().model(), policy,
                             {spec.reward_model().criteria().begin(), spec.reward_model().criteria().end()});
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
        members.push_back(MakeRewardModel(&models_, model, policy));
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
    std::vector<absl::StatusOr<double>> values;
    if (component_spec.has_external()) {
      mu_.Unlock();
      values = component->Score(samples);
      Lock();
      models_.SetDeterministic(request.deterministic());  // it was another's meanwhile
    } else {
      values = component->Score(samples);
    }
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
  RLHF_ASSIGN_OR_RETURN(LoadedModel * loaded, models_.Get(request.reference_policy(), model::HeadKind::kLm));
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
  for (const auto& [first, last] : model::SplitByTokens(sequences, models_.options().batch_tokens)) {
    const std::vector<std::vector<int32_t>> part(sequences.begin() + static_cast<int64_t>(first),
                                                 sequences.begin() + static_cast<int64_t>(last));
    const std::vector<int64_t> part_begins(begins.begin() + static_cast<int64_t>(first),
                                           begins.begin() + static_cast<int64_t>(last));
    const model::PackedBatch batch = model::PackedBatch::FromSequences(part, models_.options().device);
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

void Scorer::Lock() {
  const StuckWatch::Wait wait;
  mu_.Lock();
}

v1::ScoreResponse Scorer::Score(const v1::ScoreRequest& request) {
  Lock();
  v1::ScoreResponse response = ScoreLocked(request);
  mu_.Unlock();
  return response;
}

v1::ScoreResponse Scorer::ScoreLocked(const v1::ScoreRequest& request) {
  models_.SetDeterministic(request.deterministic());
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
