#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "coordinator/jobs/size_spec.h"
#include "coordinator/jobs/spec_checker.h"

namespace rlhf::coordinator {
namespace {

v1::Precision DefaultPrecision(v1::Precision p) {
  return p == v1::PRECISION_UNSPECIFIED ? v1::FLOAT32 : p;
}

void Sft(SpecChecker& check, v1::SftSpec* s) {
  check.Required("model", s->model(), "the model to start from");
  check.Required("data", s->data(), "data with lines {\"prompt\",\"response\"}");
  check.Positive("steps", s->steps());
  check.Positive("batch_size", s->batch_size());
  if (!s->has_prompt_loss_weight()) s->set_prompt_loss_weight(0);
  check.Range("prompt_loss_weight", s->prompt_loss_weight(), 0, 1);
  s->set_precision(DefaultPrecision(s->precision()));
  if (!s->has_micro_batch_tokens()) s->set_micro_batch_tokens(8192);
  check.Positive("micro_batch_tokens", s->micro_batch_tokens());
  check.AtLeast("checkpoint_every", s->checkpoint_every(), 0);
  check.Optimizer("optimizer", s->mutable_optimizer(), 5e-5);
}

void RewardModel(SpecChecker& check, v1::RewardModelSpec* s) {
  check.Required("model", s->model(), "the model to start from");
  check.Required("data", s->data(), "comparisons");
  if (!s->has_held_out_fraction()) s->set_held_out_fraction(0.1);
  check.Range("held_out_fraction", s->held_out_fraction(), 0, 0.9);
  if (!s->has_epochs()) s->set_epochs(1);
  check.Positive("epochs", s->epochs());
  check.Positive("batch_size", s->batch_size());
  check.Range("centering", s->centering(), 0, 100);
  check.Range("member", s->member(), 0, 1000);
  for (const auto& [criterion, weight] : s->criteria()) {
    if (!std::isfinite(weight) || criterion.empty()) check.Problem("criteria", "expected names with finite weights");
  }
  check.Range("margin_by_strength", s->margin_by_strength(), 0, 100);
  if (s->criterion_heads() && s->margin_by_strength() > 0)
    check.Problem("margin_by_strength",
                  "expected 0 with criterion_heads: strength is of the preference, heads learn ratings");
  if (s->criterion_heads() && std::none_of(s->criteria().begin(), s->criteria().end(),
                                           [](const auto& criterion) { return criterion.second != 0; })) {
    check.Problem("criteria", "expected at least one with a weight: criterion_heads makes a head of each");
  }
  s->set_precision(DefaultPrecision(s->precision()));
  if (!s->has_micro_batch_tokens()) s->set_micro_batch_tokens(8192);
  check.Positive("micro_batch_tokens", s->micro_batch_tokens());
  check.AtLeast("checkpoint_every", s->checkpoint_every(), 0);
  check.Optimizer("optimizer", s->mutable_optimizer(), 1e-5);
}

void Sample(SpecChecker& check, v1::SampleSpec* s) {
  check.Required("model", s->model(), "a model");
  check.Required("prompts", s->prompts(), "data with lines {\"prompt\"}");
  check.AtLeast("num_prompts", s->num_prompts(), 0);
  if (!s->has_samples_per_prompt()) s->set_samples_per_prompt(1);
  check.Positive("samples_per_prompt", s->samples_per_prompt());
  check.Sampling(s->mutable_sampling(), 1.0);
  if (s->has_scorer()) check.Scorer("scorer", s->mutable_scorer());
}

void Collect(SpecChecker& check, v1::CollectSpec* s) {
  check.Required("samples", s->samples(), "a `sample` job's output");
  check.Positive("comparisons", s->comparisons());
  check.Range("written_candidate_fraction", s->written_candidate_fraction(), 0, 1);
  if (!s->has_overlap()) s->set_overlap(1);
  check.Positive("overlap", s->overlap());
  if (s->task_timeout_seconds() == 0) s->set_task_timeout_seconds(600);
  check.Positive("task_timeout_seconds", s->task_timeout_seconds());
  check.AtLeast("deadline_seconds", s->deadline_seconds(), 0);
  if (s->pairs() == v1::PAIR_CHOICE_UNSPECIFIED) s->set_pairs(v1::PAIRS_RANDOM);
  check.Range("rating_fraction", s->rating_fraction(), 0, 1);
  check.Range("edit_fraction", s->edit_fraction(), 0, 1);
  if (s->written_candidate_fraction() + s->rating_fraction() + s->edit_fraction() > 1)
    check.Problem("edit_fraction", "expected the fractions of written, rating and edit tasks to add up to at most 1");
  if (s->rating_fraction() > 0 && s->criteria().empty())
    check.Problem("criteria", "expected at least one: rating_fraction asks for ratings by criterion");
  if (s->pair_ratings() && s->rating_fraction() == 0)
    check.Problem("pair_ratings", "expected rating_fraction above 0: nothing is rated by itself");
  if (s->pairs() == v1::PAIRS_DISAGREEMENT &&
      (!s->against().empty() || s->written_candidate_fraction() + s->rating_fraction() + s->edit_fraction() > 0)) {
    check.Problem("pairs", "expected PAIRS_RANDOM with `against` and with fractions of other tasks");
  }
  check.Range("planted_fraction", s->planted_fraction(), 0, 1);
  if (s->planted_fraction() > 0) check.Required("planted", s->planted(), "comparisons whose answers are known");
  check.Range("min_planted_accuracy", s->min_planted_accuracy(), 0, 1);
  if (!s->has_max_skips()) s->set_max_skips(1);
  check.Positive("max_skips", s->max_skips());
  check.AtLeast("task_expiry_seconds", s->task_expiry_seconds(), 0);
}

// After the policy's optimizer. With an estimator that has no critic nothing is filled in, and what would be ignored is
// a problem; the defaults pass, for specifications that older coordinators completed have them.
void Critic(SpecChecker& check, v1::PpoSpec* s) {
  std::string model = s->policy();
  for (const v1::RewardComponent& c : s->scorer().components()) {
    if (!c.has_reward_model() && c.ensemble().models().empty()) continue;
    model = c.has_ensemble() ? c.ensemble().models(0) : c.reward_model().model();
    break;
  }
  if (s->advantage() != v1::GAE) {
    const auto unused = [&](const char* field, bool is_default) {
      if (is_default) return;
      check.Problem(field, absl::StrCat("expected nothing with advantage ", v1::AdvantageEstimator_Name(s->advantage()),
                                        ", which has no critic and would ignore it; leave it out, or choose GAE"));
    };
    unused("critic", s->critic().empty() || s->critic() == model);
    unused("gamma", !s->has_gamma() || s->gamma() == 1.0);
    unused("lambda", !s->has_lambda() || s->lambda() == 0.95);
    unused("value_clip_range", !s->has_value_clip_range() || s->value_clip_range() == 0.2);
    unused("critic_warmup_steps", s->critic_warmup_steps() == 0);
    unused("value_coefficient", !s->has_value_coefficient() || s->value_coefficient() == 0.1);
    unused("critic_optimizer", !s->has_critic_optimizer() || s->critic_optimizer().SerializeAsString() ==
                                                                 s->policy_optimizer().SerializeAsString());
    return;
  }
  if (s->critic().empty()) s->set_critic(model);
  if (!s->has_gamma()) s->set_gamma(1.0);
  check.Range("gamma", s->gamma(), 0, 1);
  if (!s->has_lambda()) s->set_lambda(0.95);
  check.Range("lambda", s->lambda(), 0, 1);
  if (!s->has_value_clip_range()) s->set_value_clip_range(0.2);
  check.Range("value_clip_range", s->value_clip_range(), 0, 1e9);
  check.Range("critic_warmup_steps", s->critic_warmup_steps(), 0, std::max(0, s->steps() - 1));
  if (!s->has_value_coefficient()) s->set_value_coefficient(0.1);
  check.Range("value_coefficient", s->value_coefficient(), 0, 1e6);
  if (!s->has_critic_optimizer()) *s->mutable_critic_optimizer() = s->policy_optimizer();
  check.Optimizer("critic_optimizer", s->mutable_critic_optimizer(), 3e-6);
}

void Ppo(SpecChecker& check, v1::PpoSpec* s) {
  check.Required("policy", s->policy(), "the model the policy starts from");
  check.Required("prompts", s->prompts(), "data with lines {\"prompt\"}");
  if (s->scorer().components().empty())
    check.Problem("scorer.components", "expected at least one component: what is maximised");
  check.Scorer("scorer", s->mutable_scorer());
  if (s->has_gold()) check.Scorer("gold", s->mutable_gold());
  if (s->reference().empty()) s->set_reference(s->policy());
  check.Positive("steps", s->steps());
  check.Positive("prompts_per_step", s->prompts_per_step());
  if (!s->has_samples_per_prompt()) s->set_samples_per_prompt(1);
  check.Positive("samples_per_prompt", s->samples_per_prompt());
  check.Sampling(s->mutable_sampling(), 1.0);
  if (s->sampling().temperature() == 0)
    check.Problem("sampling.temperature", "expected more than 0: a greedy policy explores nothing");
  check.Range("max_policy_lag", s->max_policy_lag(), 0, 16);
  if (!s->has_epochs()) s->set_epochs(4);
  check.Positive("epochs", s->epochs());
  const int64_t batch = static_cast<int64_t>(s->prompts_per_step()) * s->samples_per_prompt();
  check.Range("minibatch_size", s->minibatch_size(), 0, static_cast<double>(batch));
  if (s->minibatch_size() > 0 && batch % s->minibatch_size() != 0) {
    check.Problem("minibatch_size",
                  absl::StrCat("expected a divisor of the step's ", batch,
                               " samples (prompts_per_step times samples_per_prompt), found ", s->minibatch_size(),
                               ": the last minibatch would be smaller and move the policy as far"));
  }
  if (!s->has_micro_batch_tokens()) s->set_micro_batch_tokens(8192);
  check.Positive("micro_batch_tokens", s->micro_batch_tokens());
  if (s->advantage() == v1::ADVANTAGE_ESTIMATOR_UNSPECIFIED) s->set_advantage(v1::GAE);
  const bool group = s->advantage() == v1::RLOO || s->advantage() == v1::GRPO || s->advantage() == v1::GRPO_NO_STD;
  if (group && s->samples_per_prompt() < 2)
    check.Problem("samples_per_prompt", "expected at least 2: this advantage estimator compares a prompt's samples");
  // Dividing by the batch's deviation what was compared within groups makes another estimator of each of them.
  if (!s->has_whiten_advantages()) s->set_whiten_advantages(!group);
  if (s->whiten_rewards() && s->advantage() != v1::GAE) {
    check.Problem("whiten_rewards",
                  absl::StrCat("expected false with advantage ", v1::AdvantageEstimator_Name(s->advantage()),
                               ": every token's reward keeps a part of the batch's mean, and the sum of an answer's, "
                               "which this compares, would count its tokens; leave it out, or choose GAE"));
  }
  if (!s->has_clip_range()) s->set_clip_range(0.2);
  check.Range("clip_range", s->clip_range(), 0, 10);
  if (!s->has_clip_range_high()) s->set_clip_range_high(s->clip_range());
  check.Range("clip_range_high", s->clip_range_high(), 0, 10);
  if (!s->has_dual_clip()) s->set_dual_clip(0);
  if (s->dual_clip() != 0) check.Above("dual_clip", s->dual_clip(), 1);
  check.Range("entropy_coefficient", s->entropy_coefficient(), -10, 10);
  if (!s->has_max_importance_weight()) s->set_max_importance_weight(2.0);
  check.Above("max_importance_weight", s->max_importance_weight(), 0);
  v1::KlSpec* kl = s->mutable_kl();
  if (kl->form() == v1::KL_FORM_UNSPECIFIED) {
    const bool grpo = s->advantage() == v1::GRPO || s->advantage() == v1::GRPO_NO_STD;
    kl->set_form(grpo ? v1::KL_LOSS_K3 : v1::KL_REWARD);
  }
  if (!kl->has_coefficient()) kl->set_coefficient(0.05);
  check.Range("kl.coefficient", kl->coefficient(), 0, 100);
  if (!kl->has_target()) kl->set_target(6.0);
  check.Above("kl.target", kl->target(), 0);
  // As many samples as a step has, at least: a large step moves the coefficient by a fifth at most.
  if (!kl->has_horizon()) kl->set_horizon(std::max(10'000.0, static_cast<double>(batch)));
  check.Above("kl.horizon", kl->horizon(), 0);
  // A step multiplies the coefficient by 1 ± 0.2 · samples / horizon.
  if (kl->adaptive() && kl->horizon() > 0 && kl->horizon() <= 0.2 * static_cast<double>(batch)) {
    check.Problem("kl.horizon",
                  absl::StrCat("expected more than ", 0.2 * static_cast<double>(batch),
                               ", a fifth of the step's samples, found ", kl->horizon(),
                               ": one step of a low KL would make the coefficient 0 or less, a reward for distance"));
  }
  if (kl->adaptive() && kl->coefficient() == 0)
    check.Problem("kl.coefficient", "expected more than 0 with kl.adaptive, which multiplies it, found 0");
  check.Optimizer("policy_optimizer", s->mutable_policy_optimizer(), 3e-6);
  Critic(check, s);
  if (s->has_ptx()) {
    if (s->ptx().batch_size() == 0) s->mutable_ptx()->set_batch_size(32);
    check.Positive("ptx.batch_size", s->ptx().batch_size());
    check.Range("ptx.coefficient", s->ptx().coefficient(), 0, 1e6);
    if (s->ptx().coefficient() > 0)
      check.Required("ptx.data", s->ptx().data(), "data with lines {\"prompt\",\"response\"}");
    if (s->ptx().coefficient() == 0 && !s->ptx().data().empty())
      check.Problem("ptx.coefficient",
                    "expected more than 0 with ptx.data, which would be ignored, found 0: the weight "
                    "of its loss beside the policy's; or leave out ptx");
  }
  s->set_precision(DefaultPrecision(s->precision()));
  if (!s->has_checkpoint_every()) s->set_checkpoint_every(20);
  check.AtLeast("checkpoint_every", s->checkpoint_every(), 0);
  check.Range("early_stop.max_kl", s->early_stop().max_kl(), 0, 1e9);
  if (s->has_monitor()) {
    v1::MonitorSpec* m = s->mutable_monitor();
    if (m->action() == v1::MONITOR_ACTION_UNSPECIFIED) m->set_action(v1::MONITOR_FAIL);
    if (m->window() == 0) m->set_window(3);
    if (m->min_steps() == 0) m->set_min_steps(m->window());
    if (!m->has_outside_deviations()) m->set_outside_deviations(4);
    const SpecChecker::Scope scope(&check, "monitor");
    check.Positive("window", m->window());
    check.AtLeast("min_steps", m->min_steps(), m->window());
    check.Range("max_kl", m->max_kl(), 0, 1e9);
    check.Range("max_gold_drop", m->max_gold_drop(), 0, 1e9);
    check.Range("max_gold_gap", m->max_gold_gap(), 0, 1e9);
    if (m->max_length_ratio() != 0) check.Above("max_length_ratio", m->max_length_ratio(), 1);
    check.Range("max_repetition", m->max_repetition(), 0, 1);
    check.Range("max_reward_length_correlation", m->max_reward_length_correlation(), 0, 1);
    check.Range("max_outside_share", m->max_outside_share(), 0, 1);
    check.Above("outside_deviations", m->outside_deviations(), 0);
    if ((m->max_gold_drop() > 0 || m->max_gold_gap() > 0) && !s->has_gold())
      check.Problem("max_gold_drop", "expected ppo.gold: a scorer that is measured and never trained on");
  }
  if (s->on_failed() == v1::ON_FAILED_SAMPLE_UNSPECIFIED) s->set_on_failed(v1::FAILED_SAMPLE_ENDS_JOB);
  if (!s->has_max_attempts()) s->set_max_attempts(5);
  check.Positive("max_attempts", s->max_attempts());
  if (!s->has_max_first_minibatch_ratio_error())
    s->set_max_first_minibatch_ratio_error(s->precision() == v1::BFLOAT16 ? 2e-2 : 1e-4);
  check.Above("max_first_minibatch_ratio_error", s->max_first_minibatch_ratio_error(), 0);
}

void Evaluate(SpecChecker& check, v1::EvaluateSpec* s) {
  check.Required("model", s->model(), "a model");
  check.Required("suite", s->suite(), "prompts with references and categories");
  check.Sampling(s->mutable_sampling(), 0.0);
  check.AtLeast("limit", s->limit(), 0);
  if (s->graders().components().empty()) {
    v1::RewardComponent* c = s->mutable_graders()->add_components();
    c->set_name("exact_answer");
    c->set_weight(1);
    c->mutable_exact_answer();
    c = s->mutable_graders()->add_components();
    c->set_name("abstention");
    c->set_weight(0);
    c->mutable_abstention();
    c = s->mutable_graders()->add_components();
    c->set_name("action_claim");
    c->set_weight(0);
    c->mutable_action_claim();
  }
  check.Scorer("graders", s->mutable_graders());
  for (int i = 0; i < s->judge().components_size(); ++i) {
    const v1::RewardComponent& judge = s->judge().components(i);
    const bool graded = std::any_of(s->graders().components().begin(), s->graders().components().end(),
                                    [&](const auto& grader) { return grader.name() == judge.name(); });
    if (!graded) {
      check.Problem(absl::StrCat("judge.components[", i, "].name"),
                    absl::StrCat("expected the name of one of the graders, found \"", judge.name(), "\""));
    }
  }
  check.Pattern("confidence_pattern", s->confidence_pattern(), 1);
  if (!s->has_bootstrap()) s->set_bootstrap(1000);
  check.Range("bootstrap", s->bootstrap(), 0, 100'000);
  if (s->has_max_disparity_rise()) {
    check.Range("max_disparity_rise", s->max_disparity_rise(), 0, 1e9);
    check.Required("against", s->against(), "an earlier evaluation's samples to measure the rise against");
  }
}

// The kind's own part, of a job or a stage.
template <typename Message>
void Kind(SpecChecker& check, Message* m) {
  const auto in = [&](const char* field, auto* part, void (*fn)(SpecChecker&, decltype(part))) {
    const SpecChecker::Scope scope(&check, field);
    fn(check, part);
  };
  if (m->has_sft()) in("sft", m->mutable_sft(), Sft);
  if (m->has_reward_model()) in("reward_model", m->mutable_reward_model(), RewardModel);
  if (m->has_sample()) in("sample", m->mutable_sample(), Sample);
  if (m->has_collect()) in("collect", m->mutable_collect(), Collect);
  if (m->has_ppo()) in("ppo", m->mutable_ppo(), Ppo);
  if (m->has_evaluate()) in("evaluate", m->mutable_evaluate(), Evaluate);
  CheckSizes(check, *m);
}

}  // namespace

void CheckKind(SpecChecker& check, v1::JobSpec* job) {
  Kind(check, job);
}

void CheckKind(SpecChecker& check, v1::StageSpec* stage) {
  Kind(check, stage);
}

}  // namespace rlhf::coordinator
