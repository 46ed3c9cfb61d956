#include "coordinator/jobs/spec.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/jobs/numerics_spec.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

class Checker {
 public:
  explicit Checker(std::vector<v1::SpecProblem>* problems) : problems_(problems) {}

  void Problem(const std::string& field, const std::string& problem) {
    v1::SpecProblem& added = problems_->emplace_back();
    added.set_field(prefix_ + field);
    added.set_problem(problem);
  }
  void Required(const std::string& field, const std::string& value, const char* what) {
    if (value.empty()) Problem(field, absl::StrCat("expected ", what, ", found nothing"));
  }
  void Positive(const std::string& field, int64_t value) { AtLeast(field, value, 1); }
  void AtLeast(const std::string& field, int64_t value, int64_t least) {
    if (value < least) Problem(field, absl::StrCat("expected at least ", least, ", found ", value));
  }
  void Range(const std::string& field, double value, double low, double high) {
    if (!(value >= low && value <= high))
      Problem(field, absl::StrCat("expected ", low, " to ", high, ", found ", value));
  }
  void Above(const std::string& field, double value, double low) {
    if (!(value > low) || !std::isfinite(value))
      Problem(field, absl::StrCat("expected more than ", low, ", found ", value));
  }
  // Everything inside is reported under this path.
  class Scope {
   public:
    Scope(Checker* checker, const std::string& path) : checker_(checker), before_(checker->prefix_) {
      absl::StrAppend(&checker->prefix_, path, ".");
    }
    ~Scope() { checker_->prefix_ = before_; }

   private:
    Checker* checker_;
    std::string before_;
  };

  void Optimizer(const std::string& field, v1::OptimizerSpec* o, double learning_rate) {
    if (!o->has_learning_rate()) o->set_learning_rate(learning_rate);
    if (o->schedule() == v1::LEARNING_RATE_SCHEDULE_UNSPECIFIED) o->set_schedule(v1::CONSTANT);
    if (!o->has_beta1()) o->set_beta1(0.9);
    if (!o->has_beta2()) o->set_beta2(0.95);
    if (!o->has_epsilon()) o->set_epsilon(1e-8);
    if (!o->has_max_grad_norm()) o->set_max_grad_norm(1.0);
    const Scope scope(this, field);
    Range("learning_rate", o->learning_rate(), 0, 1);
    AtLeast("warmup_steps", o->warmup_steps(), 0);
    Range("final_learning_rate_ratio", o->final_learning_rate_ratio(), 0, 1);
    Range("beta1", o->beta1(), 0, 0.999999);
    Range("beta2", o->beta2(), 0, 0.999999999);
    Above("epsilon", o->epsilon(), 0);
    Range("weight_decay", o->weight_decay(), 0, 10);
    Range("max_grad_norm", o->max_grad_norm(), 0, 1e9);
  }
  void Sampling(v1::SamplingParams* s, double temperature) {
    if (!s->has_temperature()) s->set_temperature(temperature);
    if (!s->has_top_p()) s->set_top_p(1.0);
    if (!s->has_max_new_tokens()) s->set_max_new_tokens(64);
    const Scope scope(this, "sampling");
    Range("temperature", s->temperature(), 0, 10);
    if (!(s->top_p() > 0 && s->top_p() <= 1))
      Problem("top_p", absl::StrCat("expected more than 0 and at most 1, found ", s->top_p()));
    AtLeast("top_k", s->top_k(), 0);
    Positive("max_new_tokens", s->max_new_tokens());
    if (s->stop_size() > 8) Problem("stop", absl::StrCat("expected at most 8 texts, found ", s->stop_size()));
    for (const std::string& stop : s->stop()) {
      if (stop.empty()) Problem("stop", "expected texts, found an empty one");
    }
  }
  void Scorer(const std::string& field, v1::ScorerSpec* scorer) {
    std::set<std::string> names;
    for (int i = 0; i < scorer->components_size(); ++i) {
      v1::RewardComponent& c = *scorer->mutable_components(i);
      const Scope scope(this, absl::StrCat(field, ".components[", i, "]"));
      Required("name", c.name(), "a name");
      if (!names.insert(c.name()).second)
        Problem("name", absl::StrCat("expected each component's own name, found \"", c.name(), "\" twice"));
      if (!c.has_weight()) c.set_weight(1);
      if (!std::isfinite(c.weight())) Problem("weight", "expected a finite number");
      switch (c.kind_case()) {
        case v1::RewardComponent::kRewardModel:
          Required("reward_model.model", c.reward_model().model(), "a model");
          if (!c.reward_model().criteria().empty()) {
            Problem("reward_model.criteria",
                    "expected nothing: criteria are combined when the reward model is trained (reward_model.criteria "
                    "of its job)");
          }
          break;
        case v1::RewardComponent::kRegex:
          Required("regex.pattern", c.regex().pattern(), "a pattern");
          if (!c.regex().has_match()) c.mutable_regex()->set_match(1);
          break;
        case v1::RewardComponent::kSentenceShare:
          Required("sentence_share.pattern", c.sentence_share().pattern(), "a pattern");
          break;
        case v1::RewardComponent::kLength:
          AtLeast("length.min_tokens", c.length().min_tokens(), 0);
          if (c.length().max_tokens() != 0)
            AtLeast("length.max_tokens", c.length().max_tokens(), c.length().min_tokens());
          AtLeast("length.slack", c.length().slack(), 0);
          break;
        case v1::RewardComponent::kExternal:
          Required("external.address", c.external().address(), "host:port");
          if (c.external().timeout_ms() == 0) c.mutable_external()->set_timeout_ms(10'000);
          Positive("external.timeout_ms", c.external().timeout_ms());
          break;
        case v1::RewardComponent::kEnsemble: {
          v1::EnsembleComponent* ensemble = c.mutable_ensemble();
          if (ensemble->models_size() < 2)
            Problem("ensemble.models", absl::StrCat("expected at least two, found ", ensemble->models_size()));
          for (const std::string& model : ensemble->models()) Required("ensemble.models", model, "a model");
          if (ensemble->rule() == v1::ENSEMBLE_RULE_UNSPECIFIED) ensemble->set_rule(v1::ENSEMBLE_MEAN);
          if (ensemble->rule() == v1::ENSEMBLE_MEAN_MINUS_STD && ensemble->coefficient() == 0)
            ensemble->set_coefficient(1);
          Range("ensemble.coefficient", ensemble->coefficient(), 0, 100);
          break;
        }
        case v1::RewardComponent::KIND_NOT_SET:
          Problem("",
                  "expected one of reward_model, ensemble, regex, length, exact_answer, abstention, action_claim, "
                  "external, sentence_share");
          break;
        default:
          break;
      }
    }
  }

 private:
  std::vector<v1::SpecProblem>* problems_;
  std::string prefix_;
};

v1::Precision DefaultPrecision(v1::Precision p) {
  return p == v1::PRECISION_UNSPECIFIED ? v1::FLOAT32 : p;
}

void Sft(Checker& check, v1::SftSpec* s) {
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

void RewardModel(Checker& check, v1::RewardModelSpec* s) {
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
  s->set_precision(DefaultPrecision(s->precision()));
  if (!s->has_micro_batch_tokens()) s->set_micro_batch_tokens(8192);
  check.Positive("micro_batch_tokens", s->micro_batch_tokens());
  check.AtLeast("checkpoint_every", s->checkpoint_every(), 0);
  check.Optimizer("optimizer", s->mutable_optimizer(), 1e-5);
}

void Sample(Checker& check, v1::SampleSpec* s) {
  check.Required("model", s->model(), "a model");
  check.Required("prompts", s->prompts(), "data with lines {\"prompt\"}");
  check.AtLeast("num_prompts", s->num_prompts(), 0);
  if (!s->has_samples_per_prompt()) s->set_samples_per_prompt(1);
  check.Positive("samples_per_prompt", s->samples_per_prompt());
  check.Sampling(s->mutable_sampling(), 1.0);
  if (s->has_scorer()) check.Scorer("scorer", s->mutable_scorer());
}

void Collect(Checker& check, v1::CollectSpec* s) {
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

void Ppo(Checker& check, v1::PpoSpec* s) {
  check.Required("policy", s->policy(), "the model the policy starts from");
  check.Required("prompts", s->prompts(), "data with lines {\"prompt\"}");
  if (s->scorer().components().empty())
    check.Problem("scorer.components", "expected at least one component: what is maximised");
  check.Scorer("scorer", s->mutable_scorer());
  if (s->has_gold()) check.Scorer("gold", s->mutable_gold());
  if (s->reference().empty()) s->set_reference(s->policy());
  if (s->critic().empty()) {
    s->set_critic(s->policy());
    for (const v1::RewardComponent& c : s->scorer().components()) {
      if (!c.has_reward_model() && c.ensemble().models().empty()) continue;
      s->set_critic(c.has_ensemble() ? c.ensemble().models(0) : c.reward_model().model());
      break;
    }
  }
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
  if (!s->has_micro_batch_tokens()) s->set_micro_batch_tokens(8192);
  check.Positive("micro_batch_tokens", s->micro_batch_tokens());
  if (s->advantage() == v1::ADVANTAGE_ESTIMATOR_UNSPECIFIED) s->set_advantage(v1::GAE);
  const bool group = s->advantage() == v1::RLOO || s->advantage() == v1::GRPO || s->advantage() == v1::GRPO_NO_STD;
  if (group && s->samples_per_prompt() < 2)
    check.Problem("samples_per_prompt", "expected at least 2: this advantage estimator compares a prompt's samples");
  if (!s->has_gamma()) s->set_gamma(1.0);
  check.Range("gamma", s->gamma(), 0, 1);
  if (!s->has_lambda()) s->set_lambda(0.95);
  check.Range("lambda", s->lambda(), 0, 1);
  if (!s->has_whiten_advantages()) s->set_whiten_advantages(true);
  if (!s->has_clip_range()) s->set_clip_range(0.2);
  check.Range("clip_range", s->clip_range(), 0, 10);
  if (!s->has_clip_range_high()) s->set_clip_range_high(s->clip_range());
  check.Range("clip_range_high", s->clip_range_high(), 0, 10);
  if (!s->has_dual_clip()) s->set_dual_clip(0);
  if (s->dual_clip() != 0) check.Above("dual_clip", s->dual_clip(), 1);
  if (!s->has_value_clip_range()) s->set_value_clip_range(0.2);
  check.Range("value_clip_range", s->value_clip_range(), 0, 1e9);
  if (!s->has_value_coefficient()) s->set_value_coefficient(0.1);
  check.Range("value_coefficient", s->value_coefficient(), 0, 1e6);
  check.Range("entropy_coefficient", s->entropy_coefficient(), -10, 10);
  if (!s->has_max_importance_weight()) s->set_max_importance_weight(2.0);
  check.Above("max_importance_weight", s->max_importance_weight(), 0);
  v1::KlSpec* kl = s->mutable_kl();
  if (!kl->has_coefficient()) kl->set_coefficient(0.05);
  check.Range("kl.coefficient", kl->coefficient(), 0, 100);
  if (!kl->has_target()) kl->set_target(6.0);
  check.Above("kl.target", kl->target(), 0);
  if (!kl->has_horizon()) kl->set_horizon(10'000);
  check.Above("kl.horizon", kl->horizon(), 0);
  const bool own_critic = s->has_critic_optimizer();
  check.Optimizer("policy_optimizer", s->mutable_policy_optimizer(), 3e-6);
  if (!own_critic) *s->mutable_critic_optimizer() = s->policy_optimizer();
  check.Optimizer("critic_optimizer", s->mutable_critic_optimizer(), 3e-6);
  if (s->has_ptx()) {
    if (s->ptx().batch_size() == 0) s->mutable_ptx()->set_batch_size(32);
    check.Positive("ptx.batch_size", s->ptx().batch_size());
    check.Range("ptx.coefficient", s->ptx().coefficient(), 0, 1e6);
    if (s->ptx().coefficient() > 0)
      check.Required("ptx.data", s->ptx().data(), "data with lines {\"prompt\",\"response\"}");
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
    const Checker::Scope scope(&check, "monitor");
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
  if (!s->has_max_attempts()) s->set_max_attempts(5);
  check.Positive("max_attempts", s->max_attempts());
  if (!s->has_max_first_minibatch_ratio_error())
    s->set_max_first_minibatch_ratio_error(s->precision() == v1::BFLOAT16 ? 2e-2 : 1e-4);
  check.Above("max_first_minibatch_ratio_error", s->max_first_minibatch_ratio_error(), 0);
}

void Evaluate(Checker& check, v1::EvaluateSpec* s) {
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
  if (!s->has_bootstrap()) s->set_bootstrap(1000);
  check.Range("bootstrap", s->bootstrap(), 0, 100'000);
  if (s->has_max_disparity_rise()) {
    check.Range("max_disparity_rise", s->max_disparity_rise(), 0, 1e9);
    check.Required("against", s->against(), "an earlier evaluation's samples to measure the rise against");
  }
}

// The kind's own part, of a job or a stage.
template <typename Message>
void Kind(Checker& check, Message* m) {
  const auto in = [&](const char* field, auto* part, void (*fn)(Checker&, decltype(part))) {
    const Checker::Scope scope(&check, field);
    fn(check, part);
  };
  if (m->has_sft()) in("sft", m->mutable_sft(), Sft);
  if (m->has_reward_model()) in("reward_model", m->mutable_reward_model(), RewardModel);
  if (m->has_sample()) in("sample", m->mutable_sample(), Sample);
  if (m->has_collect()) in("collect", m->mutable_collect(), Collect);
  if (m->has_ppo()) in("ppo", m->mutable_ppo(), Ppo);
  if (m->has_evaluate()) in("evaluate", m->mutable_evaluate(), Evaluate);
}

void ScorerReferences(const std::string& path, v1::ScorerSpec* scorer, std::vector<Reference>* out) {
  for (int i = 0; i < scorer->components_size(); ++i) {
    if (scorer->components(i).has_ensemble()) {
      int m = 0;
      for (std::string& model : *scorer->mutable_components(i)->mutable_ensemble()->mutable_models())
        out->push_back({absl::StrCat(path, ".components[", i, "].ensemble.models[", m++, "]"), &model, true});
    }
    if (!scorer->components(i).has_reward_model()) continue;
    out->push_back({absl::StrCat(path, ".components[", i, "].reward_model.model"),
                    scorer->mutable_components(i)->mutable_reward_model()->mutable_model(), true});
  }
}

template <typename Message>
void KindReferences(const std::string& prefix, Message* m, std::vector<Reference>* out) {
  if (m->has_sft()) {
    out->push_back({prefix + "sft.model", m->mutable_sft()->mutable_model(), true});
    out->push_back({prefix + "sft.data", m->mutable_sft()->mutable_data(), false});
  } else if (m->has_reward_model()) {
    out->push_back({prefix + "reward_model.model", m->mutable_reward_model()->mutable_model(), true});
    out->push_back({prefix + "reward_model.data", m->mutable_reward_model()->mutable_data(), false});
    out->push_back({prefix + "reward_model.normalization_samples",
                    m->mutable_reward_model()->mutable_normalization_samples(), false});
  } else if (m->has_sample()) {
    out->push_back({prefix + "sample.model", m->mutable_sample()->mutable_model(), true});
    out->push_back({prefix + "sample.prompts", m->mutable_sample()->mutable_prompts(), false});
    ScorerReferences(prefix + "sample.scorer", m->mutable_sample()->mutable_scorer(), out);
    if (m->sample().scorer().components().empty()) m->mutable_sample()->clear_scorer();
  } else if (m->has_collect()) {
    v1::CollectSpec* collect = m->mutable_collect();
    out->push_back({prefix + "collect.samples", collect->mutable_samples(), false});
    out->push_back({prefix + "collect.against", collect->mutable_against(), false});
    out->push_back({prefix + "collect.planted", collect->mutable_planted(), false});
    out->push_back({prefix + "collect.previous", collect->mutable_previous(), false});
  } else if (m->has_ppo()) {
    v1::PpoSpec* ppo = m->mutable_ppo();
    out->push_back({prefix + "ppo.policy", ppo->mutable_policy(), true});
    out->push_back({prefix + "ppo.reference", ppo->mutable_reference(), true});
    out->push_back({prefix + "ppo.critic", ppo->mutable_critic(), true});
    out->push_back({prefix + "ppo.prompts", ppo->mutable_prompts(), false});
    if (ppo->has_ptx()) out->push_back({prefix + "ppo.ptx.data", ppo->mutable_ptx()->mutable_data(), false});
    ScorerReferences(prefix + "ppo.scorer", ppo->mutable_scorer(), out);
    if (ppo->has_gold()) ScorerReferences(prefix + "ppo.gold", ppo->mutable_gold(), out);
  } else if (m->has_evaluate()) {
    out->push_back({prefix + "evaluate.model", m->mutable_evaluate()->mutable_model(), true});
    out->push_back({prefix + "evaluate.suite", m->mutable_evaluate()->mutable_suite(), false});
    out->push_back({prefix + "evaluate.against", m->mutable_evaluate()->mutable_against(), false});
    ScorerReferences(prefix + "evaluate.graders", m->mutable_evaluate()->mutable_graders(), out);
  }
}

bool MakesModel(const v1::StageSpec& stage) {
  return stage.has_sft() || stage.has_reward_model() || stage.has_ppo();
}

void Gate(Checker& check, const std::map<std::string, const v1::StageSpec*>& earlier, const v1::StageSpec& stage,
          v1::GateSpec* gate) {
  check.AtLeast("gate.required_approvals", gate->required_approvals(), 0);
  if (gate->on_closed() == v1::GATE_CLOSED_UNSPECIFIED) gate->set_on_closed(v1::GATE_ENDS);
  if (gate->max_repeats() == 0) gate->set_max_repeats(1);
  check.Range("gate.max_repeats", gate->max_repeats(), 1, 100);
  if (!gate->approves().empty()) {
    const auto it = earlier.find(gate->approves());
    const v1::StageSpec* approved = gate->approves() == stage.name() ? &stage
                                    : it == earlier.end()            ? nullptr
                                                                     : it->second;
    if (approved == nullptr || !(approved->has_ppo() || approved->has_sft()))
      check.Problem("gate.approves", absl::StrCat("expected this or an earlier stage that makes a policy, found \"",
                                                  gate->approves(), "\""));
  }
  if (!gate->publish_as().empty()) {
    if (const absl::Status status = CheckAlias("publish_as", gate->publish_as()); !status.ok())
      check.Problem("gate.publish_as", std::string(status.message()));
    if (gate->approves().empty()) check.Problem("gate.approves", "expected the stage whose model is published");
    if (gate->required_approvals() < 1)
      check.Problem("gate.required_approvals",
                    "expected at least 1: nothing is published as approved without a person");
  }
  for (const v1::GateCondition& condition : gate->conditions()) {
    if (!condition.stage().empty() && earlier.count(condition.stage()) == 0)
      check.Problem("gate.conditions", absl::StrCat("expected an earlier stage, found \"", condition.stage(), "\""));
  }
}

void Pipeline(Checker& check, v1::JobSpec* spec) {
  v1::PipelineSpec* pipeline = spec->mutable_pipeline();
  if (pipeline->stages().empty()) check.Problem("pipeline.stages", "expected at least one stage, found none");
  if (pipeline->rounds() == 0) pipeline->set_rounds(1);
  check.Range("pipeline.rounds", pipeline->rounds(), 1, 100);
  bool approves = false, repeats_from = pipeline->repeat_from().empty();
  for (const v1::StageSpec& stage : pipeline->stages()) {
    approves = approves || !stage.gate().approves().empty();
    repeats_from = repeats_from || stage.name() == pipeline->repeat_from();
  }
  if (!repeats_from)
    check.Problem("pipeline.repeat_from",
                  absl::StrCat("expected the name of a stage, found \"", pipeline->repeat_from(), "\""));
  std::map<std::string, const v1::StageSpec*> earlier;
  for (int i = 0; i < pipeline->stages_size(); ++i) {
    v1::StageSpec* stage = pipeline->mutable_stages(i);
    const std::string path = absl::StrCat("pipeline.stages[", i, "]");
    {
      const Checker::Scope scope(&check, path);
      if (const absl::Status status = CheckName("name", stage->name()); !status.ok())
        check.Problem("name", std::string(status.message()));
      if (earlier.count(stage->name()) > 0)
        check.Problem("name", absl::StrCat("expected each stage's own name, found \"", stage->name(), "\" twice"));
      if (stage->kind_case() == v1::StageSpec::KIND_NOT_SET)
        check.Problem("", "expected one of sft, reward_model, sample, collect, ppo, evaluate");
      if (stage->has_learners() && stage->learners().has_ranks())
        check.Range("learners.ranks", stage->learners().ranks(), 1, 1024);
      if (stage->learners().has_min_ranks())
        check.Range("learners.min_ranks", stage->learners().min_ranks(), 1, std::max(1, stage->learners().ranks()));
      Kind(check, stage);
      for (int c = 0; c < stage->gate().conditions_size(); ++c) {
        check.Required(absl::StrCat("gate.conditions[", c, "].metric"), stage->gate().conditions(c).metric(),
                       "a metric's name");
        if (!stage->gate().conditions(c).has_min() && !stage->gate().conditions(c).has_max()) {
          check.Problem(absl::StrCat("gate.conditions[", c, "]"), "expected min, max or both");
        }
      }
      if (stage->has_gate()) Gate(check, earlier, *stage, stage->mutable_gate());
      check.Range("from_round", stage->from_round(), 0, 100);
    }
    std::vector<Reference> references;
    KindReferences(absl::StrCat(path, "."), stage, &references);
    for (const Reference& reference : references) {
      const bool approved = absl::StartsWith(*reference.value, "approved:");
      if (!approved && !absl::StartsWith(*reference.value, "stage:")) continue;
      const std::string name = reference.value->substr(reference.value->find(':') + 1);
      if (approved && !approves) {
        check.Problem(reference.field, "expected a gate of the pipeline that says which stage's model it `approves`");
      }
      const auto it = earlier.find(name);
      if (it == earlier.end()) {
        check.Problem(
            reference.field,
            absl::StrCat("expected an earlier stage (",
                         absl::StrJoin(earlier, ", ", [](std::string* out, const auto& e) { out->append(e.first); }),
                         "), found \"", name, "\""));
      } else if (MakesModel(*it->second) != reference.model) {
        check.Problem(reference.field, absl::StrCat("expected a stage that makes ",
                                                    reference.model ? "a model" : "data", ", found \"", name, "\""));
      }
    }
    earlier[stage->name()] = stage;
  }
}

}  // namespace

std::string KindOf(const v1::JobSpec& spec) {
  const auto* field = v1::JobSpec::descriptor()->FindFieldByNumber(spec.kind_case());
  return field == nullptr ? "" : field->name();
}

std::vector<v1::SpecProblem> CompleteSpec(v1::JobSpec* spec) {
  std::vector<v1::SpecProblem> problems;
  Checker check(&problems);
  if (const absl::Status status = CheckName("name", spec->name()); !status.ok())
    check.Problem("name", std::string(status.message()));
  if (spec->project().empty()) spec->set_project("default");
  if (const absl::Status status = CheckName("project", spec->project()); !status.ok())
    check.Problem("project", std::string(status.message()));
  if (spec->labels_size() > 16)
    check.Problem("labels", absl::StrCat("expected at most 16, found ", spec->labels_size()));
  if (!spec->learners().has_ranks()) spec->mutable_learners()->set_ranks(1);
  check.Range("learners.ranks", spec->learners().ranks(), 1, 1024);
  if (!spec->learners().has_min_ranks()) spec->mutable_learners()->set_min_ranks(spec->learners().ranks());
  check.Range("learners.min_ranks", spec->learners().min_ranks(), 1, spec->learners().ranks());
  if (spec->kind_case() == v1::JobSpec::KIND_NOT_SET) {
    check.Problem("", "expected one of sft, reward_model, sample, collect, ppo, evaluate, pipeline");
  } else if (spec->has_pipeline()) {
    Pipeline(check, spec);
  } else {
    Kind(check, spec);
  }
  CheckNumerics(spec, &problems);
  return problems;
}

std::vector<Reference> ReferencesOf(v1::JobSpec* spec) {
  std::vector<Reference> all;
  if (spec->has_pipeline()) {
    for (int i = 0; i < spec->pipeline().stages_size(); ++i) {
      KindReferences(absl::StrCat("pipeline.stages[", i, "]."), spec->mutable_pipeline()->mutable_stages(i), &all);
    }
  } else {
    KindReferences("", spec, &all);
  }
  std::vector<Reference> out;
  for (Reference& reference : all) {
    if (!reference.value->empty()) out.push_back(std::move(reference));
  }
  return out;
}

v1::JobSpec SpecOfStage(const v1::JobSpec& pipeline, const v1::StageSpec& stage, int round, int repeat) {
  v1::JobSpec spec;
  std::string suffix = absl::StrCat("-", stage.name());
  if (round > 1 || repeat > 0) absl::StrAppend(&suffix, "-r", round);
  if (repeat > 0) absl::StrAppend(&suffix, "-", repeat);
  spec.set_name(pipeline.name().substr(0, 63 - std::min<size_t>(63, suffix.size())) + suffix);
  spec.set_project(pipeline.project());
  // Far apart, so that pipelines with neighbouring seeds do not share a later round's.
  spec.set_seed(pipeline.seed() + 1'000'003ull * static_cast<uint64_t>(std::max(0, round - 1)) +
                10'000'019ull * static_cast<uint64_t>(repeat));
  spec.set_deterministic(pipeline.deterministic());
  spec.set_priority(pipeline.priority());
  *spec.mutable_labels() = pipeline.labels();
  *spec.mutable_learners() =
      stage.has_learners() && stage.learners().has_ranks() ? stage.learners() : pipeline.learners();
  if (stage.has_sft()) *spec.mutable_sft() = stage.sft();
  if (stage.has_reward_model()) *spec.mutable_reward_model() = stage.reward_model();
  if (stage.has_sample()) *spec.mutable_sample() = stage.sample();
  if (stage.has_collect()) *spec.mutable_collect() = stage.collect();
  if (stage.has_ppo()) *spec.mutable_ppo() = stage.ppo();
  if (stage.has_evaluate()) *spec.mutable_evaluate() = stage.evaluate();
  return spec;
}

std::string MainArtifact(const v1::JobSpec& spec) {
  if (spec.has_sample() || spec.has_evaluate()) return "samples";
  if (spec.has_collect()) return "comparisons";
  return "model";
}

std::string ArtifactFor(const Reference& reference, const v1::JobSpec& made_by) {
  const bool sft = absl::EndsWith(reference.field, "sft.data") || absl::EndsWith(reference.field, "ptx.data");
  return made_by.has_collect() && sft ? "edits" : MainArtifact(made_by);
}

std::string JoinProblems(const std::vector<v1::SpecProblem>& problems) {
  return absl::StrJoin(problems, "; ", [](std::string* out, const v1::SpecProblem& p) {
    if (!p.field().empty()) absl::StrAppend(out, p.field(), ": ");
    absl::StrAppend(out, p.problem());
  });
}

}  // namespace rlhf::coordinator
