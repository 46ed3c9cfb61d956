#include "coordinator/jobs/spec_checker.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/host_port.h"
#include "common/known_fields.h"
#include "coordinator/jobs/pattern_spec.h"

namespace rlhf::coordinator {
SpecChecker::Scope::Scope(SpecChecker* checker, const std::string& path)
    : checker_(checker), before_(checker->prefix_) {
  absl::StrAppend(&checker->prefix_, path, ".");
}

void SpecChecker::Problem(const std::string& field, const std::string& problem) {
  if (problems_->size() >= kMostProblems) return;
  v1::SpecProblem& added = problems_->emplace_back();
  added.set_field(prefix_ + field);
  added.set_problem(problem);
}

void SpecChecker::Required(const std::string& field, const std::string& value, const char* what) {
  if (value.empty()) Problem(field, absl::StrCat("expected ", what, ", found nothing"));
}

void SpecChecker::AtLeast(const std::string& field, int64_t value, int64_t least) {
  if (value < least) Problem(field, absl::StrCat("expected at least ", least, ", found ", value));
}

void SpecChecker::AtMost(const std::string& field, int64_t value, int64_t most) {
  if (value > most) Problem(field, absl::StrCat("expected at most ", most, ", found ", value));
}

void SpecChecker::Range(const std::string& field, double value, double low, double high) {
  if (!(value >= low && value <= high)) Problem(field, absl::StrCat("expected ", low, " to ", high, ", found ", value));
}

void SpecChecker::Above(const std::string& field, double value, double low) {
  if (!(value > low) || !std::isfinite(value))
    Problem(field, absl::StrCat("expected more than ", low, ", found ", value));
}

void SpecChecker::Pattern(const std::string& field, const std::string& pattern, int groups) {
  if (pattern.empty()) return;
  if (const std::string problem = PatternProblem(pattern, groups); !problem.empty()) Problem(field, problem);
}

void SpecChecker::Address(const std::string& field, const std::string& address) {
  if (address.empty()) return;
  const std::string name(absl::StripPrefix(address, "dns:///"));
  const absl::StatusOr<HostPort> parsed = ParseHostPort(name, field);
  const bool v6 = absl::StartsWith(name, "[");
  const bool good = parsed.ok() && parsed->port > 0 && name.front() != ':' &&
                    std::all_of(parsed->host.begin(), parsed->host.end(), [v6](unsigned char c) {
                      return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_' || (v6 && c == ':');
                    });
  if (!good) Problem(field, absl::StrCat("expected HOST:PORT or dns:///NAME:PORT, found \"", address, "\""));
}

void SpecChecker::Known(const google::protobuf::Message& message) {
  for (const NewerPart& part : NewerParts(message))
    Problem(part.field,
            absl::StrCat(part.found, ": this coordinator is older than who wrote it: update the coordinator first"));
}

void SpecChecker::Optimizer(const std::string& field, v1::OptimizerSpec* o, double learning_rate) {
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

void SpecChecker::Sampling(v1::SamplingParams* s, double temperature) {
  if (!s->has_temperature()) s->set_temperature(temperature);
  if (!s->has_top_p()) s->set_top_p(1.0);
  if (!s->has_max_new_tokens()) s->set_max_new_tokens(64);
  const Scope scope(this, "sampling");
  Range("temperature", s->temperature(), 0, 10);
  // Logits are divided by it in float32: by less, they would be infinite and have no token.
  if (s->temperature() > 0 && s->temperature() < 1e-30)
    Problem("temperature", absl::StrCat("expected 0 (greedy), or at least 1e-30, found ", s->temperature()));
  if (!(s->top_p() > 0 && s->top_p() <= 1))
    Problem("top_p", absl::StrCat("expected more than 0 and at most 1, found ", s->top_p()));
  AtLeast("top_k", s->top_k(), 0);
  Positive("max_new_tokens", s->max_new_tokens());
  if (s->stop_size() > 8) Problem("stop", absl::StrCat("expected at most 8 texts, found ", s->stop_size()));
  for (const std::string& stop : s->stop()) {
    if (stop.empty()) Problem("stop", "expected texts, found an empty one");
  }
}

void SpecChecker::Scorer(const std::string& field, v1::ScorerSpec* scorer) {
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
        for (const auto& [criterion, weight] : c.reward_model().criteria()) {
          if (!std::isfinite(weight) || criterion.empty())
            Problem("reward_model.criteria", "expected names with finite weights");
        }
        break;
      case v1::RewardComponent::kRegex:
        Required("regex.pattern", c.regex().pattern(), "a pattern");
        Pattern("regex.pattern", c.regex().pattern());
        if (!c.regex().has_match()) c.mutable_regex()->set_match(1);
        break;
      case v1::RewardComponent::kSentenceShare:
        Required("sentence_share.pattern", c.sentence_share().pattern(), "a pattern");
        Pattern("sentence_share.pattern", c.sentence_share().pattern());
        break;
      case v1::RewardComponent::kLength:
        AtLeast("length.min_tokens", c.length().min_tokens(), 0);
        if (c.length().max_tokens() != 0)
          AtLeast("length.max_tokens", c.length().max_tokens(), c.length().min_tokens());
        AtLeast("length.slack", c.length().slack(), 0);
        break;
      case v1::RewardComponent::kExternal:
        Required("external.address", c.external().address(), "host:port");
        Address("external.address", c.external().address());
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

}  // namespace rlhf::coordinator
