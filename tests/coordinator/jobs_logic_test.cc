// Specifications, evaluations, raters' tasks: what jobs compute without a service around them.
#include <cmath>
#include <limits>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/spec_loader.h"
#include "coordinator/jobs/collect_metrics.h"
#include "coordinator/jobs/collect_tasks.h"
#include "coordinator/jobs/evaluation.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/jobs/stage_metrics.h"
#include "tests/testing/golden.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

v1::JobSpec Ppo() {
  v1::JobSpec spec;
  spec.set_name("job");
  v1::PpoSpec* ppo = spec.mutable_ppo();
  ppo->set_policy("base");
  ppo->set_prompts("prompts");
  ppo->set_steps(3);
  ppo->set_prompts_per_step(8);
  v1::RewardComponent* component = ppo->mutable_scorer()->add_components();
  component->set_name("r");
  component->mutable_reward_model()->set_model("rm");
  return spec;
}

TEST(SpecTest, DefaultsAreFilledIn) {
  v1::JobSpec spec = Ppo();
  EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
  EXPECT_EQ(spec.ppo().reference(), "base");
  EXPECT_EQ(spec.ppo().critic(), "rm");
  EXPECT_EQ(spec.ppo().epochs(), 4);
  EXPECT_EQ(spec.ppo().kl().coefficient(), 0.05);
  EXPECT_EQ(spec.ppo().lambda(), 0.95);
  EXPECT_EQ(spec.ppo().policy_optimizer().learning_rate(), 3e-6);
  EXPECT_EQ(spec.ppo().checkpoint_every(), 20);
  EXPECT_EQ(spec.ppo().scorer().components(0).weight(), 1);
  EXPECT_EQ(spec.ppo().max_first_minibatch_ratio_error(), 1e-4);
  EXPECT_EQ(spec.project(), "default");
  // Completing what is complete changes nothing.
  const std::string complete = spec.SerializeAsString();
  EXPECT_TRUE(CompleteSpec(&spec).empty());
  EXPECT_EQ(spec.SerializeAsString(), complete);
}

TEST(SpecTest, TheFormOfTheKlIsByTheEstimator) {
  const auto completed = [](v1::AdvantageEstimator advantage, v1::KlForm form) {
    v1::JobSpec spec = Ppo();
    spec.mutable_ppo()->set_samples_per_prompt(4);
    spec.mutable_ppo()->set_advantage(advantage);
    spec.mutable_ppo()->mutable_kl()->set_form(form);
    EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
    const std::string complete = spec.SerializeAsString();
    EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
    EXPECT_EQ(spec.SerializeAsString(), complete);
    return spec.ppo();
  };
  for (const auto advantage : {v1::ADVANTAGE_ESTIMATOR_UNSPECIFIED, v1::GAE, v1::RLOO, v1::REINFORCE_BASELINE}) {
    EXPECT_EQ(completed(advantage, v1::KL_FORM_UNSPECIFIED).kl().form(), v1::KL_REWARD);
    EXPECT_EQ(completed(advantage, v1::KL_LOSS_K2).kl().form(), v1::KL_LOSS_K2);
  }
  for (const auto advantage : {v1::GRPO, v1::GRPO_NO_STD}) {
    EXPECT_EQ(completed(advantage, v1::KL_FORM_UNSPECIFIED).kl().form(), v1::KL_LOSS_K3);
    EXPECT_EQ(completed(advantage, v1::KL_REWARD).kl().form(), v1::KL_REWARD);
  }
}

TEST(SpecTest, WhatIsComparedWithinGroupsIsNotWhitenedUnlessAsked) {
  for (const auto& [advantage, whitened] : std::map<v1::AdvantageEstimator, bool>{{v1::GAE, true},
                                                                                  {v1::REINFORCE_BASELINE, true},
                                                                                  {v1::RLOO, false},
                                                                                  {v1::GRPO, false},
                                                                                  {v1::GRPO_NO_STD, false}}) {
    v1::JobSpec spec = Ppo(), asked = Ppo();
    for (v1::JobSpec* one : {&spec, &asked}) {
      one->mutable_ppo()->set_samples_per_prompt(4);
      one->mutable_ppo()->set_advantage(advantage);
    }
    asked.mutable_ppo()->set_whiten_advantages(!whitened);
    EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
    EXPECT_EQ(JoinProblems(CompleteSpec(&asked)), "");
    EXPECT_EQ(spec.ppo().whiten_advantages(), whitened) << v1::AdvantageEstimator_Name(advantage);
    EXPECT_EQ(asked.ppo().whiten_advantages(), !whitened) << v1::AdvantageEstimator_Name(advantage);
  }
}

// An estimator without a critic would ignore them.
TEST(SpecTest, WhatIsOfACriticNeedsOne) {
  const std::map<std::string, std::function<void(v1::PpoSpec*)>> changes = {
      {"critic", [](v1::PpoSpec* s) { s->set_critic("other"); }},
      {"gamma", [](v1::PpoSpec* s) { s->set_gamma(0.99); }},
      {"lambda", [](v1::PpoSpec* s) { s->set_lambda(1); }},
      {"value_clip_range", [](v1::PpoSpec* s) { s->set_value_clip_range(0.5); }},
      {"critic_warmup_steps", [](v1::PpoSpec* s) { s->set_critic_warmup_steps(1); }},
      {"value_coefficient", [](v1::PpoSpec* s) { s->set_value_coefficient(0); }},
      {"critic_optimizer", [](v1::PpoSpec* s) { s->mutable_critic_optimizer()->set_learning_rate(1e-3); }}};
  for (const auto advantage : {v1::RLOO, v1::GRPO, v1::GRPO_NO_STD, v1::REINFORCE_BASELINE}) {
    v1::JobSpec without = Ppo();
    without.mutable_ppo()->set_samples_per_prompt(4);
    without.mutable_ppo()->set_advantage(advantage);
    v1::JobSpec completed = without;
    EXPECT_EQ(JoinProblems(CompleteSpec(&completed)), "");
    EXPECT_EQ(completed.ppo().critic(), "") << "a job's inputs are what it uses";
    EXPECT_FALSE(completed.ppo().has_gamma() || completed.ppo().has_critic_optimizer());
    // As coordinators before this one completed it.
    completed.mutable_ppo()->set_critic("rm");
    completed.mutable_ppo()->set_gamma(1);
    completed.mutable_ppo()->set_lambda(0.95);
    completed.mutable_ppo()->set_value_clip_range(0.2);
    completed.mutable_ppo()->set_value_coefficient(0.1);
    *completed.mutable_ppo()->mutable_critic_optimizer() = completed.ppo().policy_optimizer();
    const std::string before = completed.SerializeAsString();
    EXPECT_EQ(JoinProblems(CompleteSpec(&completed)), "");
    EXPECT_EQ(completed.SerializeAsString(), before);
    for (const auto& [field, change] : changes) {
      v1::JobSpec ignored = without, with_critic = without;
      change(ignored.mutable_ppo());
      EXPECT_EQ(
          JoinProblems(CompleteSpec(&ignored)),
          absl::StrCat("ppo.", field, ": expected nothing with advantage ", v1::AdvantageEstimator_Name(advantage),
                       ", which has no critic and would ignore it; leave it out, or choose GAE"));
      change(with_critic.mutable_ppo());
      with_critic.mutable_ppo()->set_advantage(v1::GAE);
      EXPECT_EQ(JoinProblems(CompleteSpec(&with_critic)), "") << field;
    }
  }
}

TEST(SpecTest, EveryProblemNamesItsField) {
  const auto problem = [](const std::function<void(v1::JobSpec*)>& change) {
    v1::JobSpec spec = Ppo();
    change(&spec);
    return JoinProblems(CompleteSpec(&spec));
  };
  EXPECT_THAT(problem([](auto* s) { s->set_name("Bad Name"); }), HasSubstr("name: "));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->clear_steps(); }),
              HasSubstr("ppo.steps: expected at least 1, found 0"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_sampling()->set_top_p(0); }),
              HasSubstr("ppo.sampling.top_p"));
  // Logits divided by less are infinite in float32.
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_sampling()->set_temperature(1e-31); }),
              HasSubstr("ppo.sampling.temperature: expected 0 (greedy), or at least 1e-30, found 1e-31"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_sampling()->set_temperature(1e-30); }),
              testing::Not(HasSubstr("temperature")));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_kl()->set_coefficient(-1); }),
              HasSubstr("ppo.kl.coefficient"));
  EXPECT_THAT(
      problem([](auto* s) {
        s->set_deterministic(true);
        s->mutable_ppo()->set_precision(v1::BFLOAT16);
        s->mutable_ppo()->set_max_policy_lag(1);
      }),
      testing::AllOf(HasSubstr("ppo.precision: expected FLOAT32"), HasSubstr("ppo.max_policy_lag: expected 0")));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_lora(); }), HasSubstr("ppo.lora.rank"));
  EXPECT_THAT(problem([](auto* s) {
                s->mutable_ppo()->mutable_lora()->set_rank(8);
                s->mutable_ppo()->set_reference("another");
              }),
              HasSubstr("ppo.reference"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->set_advantage(v1::RLOO); }),
              HasSubstr("ppo.samples_per_prompt: expected at least 2"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->set_minibatch_size(9); }),
              HasSubstr("ppo.minibatch_size: expected 0 to 8, found 9"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->set_minibatch_size(3); }),
              HasSubstr("ppo.minibatch_size: expected a divisor of the step's 8 samples"));
  for (const int divisor : {0, 1, 2, 4, 8})
    EXPECT_EQ(problem([divisor](auto* s) { s->mutable_ppo()->set_minibatch_size(divisor); }), "") << divisor;
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_scorer()->mutable_components(0)->clear_kind(); }),
              HasSubstr("ppo.scorer.components[0]"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_policy_optimizer()->set_learning_rate(7); }),
              HasSubstr("ppo.policy_optimizer.learning_rate: expected 0 to 1, found 7"));
  EXPECT_THAT(problem([](auto* s) { s->clear_kind(); }), HasSubstr("expected one of sft"));
  EXPECT_EQ(problem([](auto* s) { s->mutable_learners()->set_ranks(0); }),
            "learners.ranks: expected 1 to 1024, found 0");
}

// Else a job would run that is not the one that was asked for, and nobody would be told.
TEST(SpecTest, WhatOnlyANewerReleaseKnowsIsRefused) {
  v1::JobSpec spec;
  spec.set_name("job");
  v1::StageSpec* stage = spec.mutable_pipeline()->add_stages();
  stage->set_name("sft");
  stage->mutable_sft()->set_model("base");
  stage->mutable_sft()->set_data("data");
  stage->mutable_sft()->set_steps(1);
  stage->mutable_sft()->set_batch_size(1);
  v1::JobSpec fine = spec;
  ASSERT_EQ(JoinProblems(CompleteSpec(&fine)), "");
  stage->mutable_sft()->mutable_optimizer()->set_schedule(static_cast<v1::LearningRateSchedule>(77));
  v1::SftSpec* sft = stage->mutable_sft();
  sft->GetReflection()->MutableUnknownFields(sft)->AddVarint(999, 1);
  v1::JobSpec received;  // as over the wire
  ASSERT_TRUE(received.ParseFromString(spec.SerializeAsString()));
  const std::string problems = JoinProblems(CompleteSpec(&received));
  EXPECT_THAT(problems, HasSubstr("pipeline.stages[0].sft.#999: expected a field that is known"));
  EXPECT_THAT(problems,
              HasSubstr("pipeline.stages[0].sft.optimizer.schedule: expected a value of LearningRateSchedule, "
                        "found number 77"));
  EXPECT_THAT(problems, HasSubstr("update the coordinator first"));
  for (int i = 0; i < 10'000; ++i) sft->GetReflection()->MutableUnknownFields(sft)->AddVarint(1000 + i, 1);
  v1::JobSpec many = spec;
  EXPECT_LT(JoinProblems(CompleteSpec(&many)).size(), 5000u);
}

TEST(SpecTest, LayersAreDividedWithTheOptimizersStateAndGradientCheckpointing) {
  v1::JobSpec spec = Ppo();
  spec.mutable_ppo()->set_gradient_checkpointing(true);
  spec.mutable_learners()->set_ranks(2);
  spec.mutable_learners()->set_shard_optimizer_state(true);
  spec.mutable_learners()->set_shard_parameters(true);
  const auto problem = [&](const std::function<void(v1::JobSpec*)>& change) {
    v1::JobSpec changed = spec;
    change(&changed);
    return JoinProblems(CompleteSpec(&changed));
  };
  EXPECT_EQ(problem([](auto*) {}), "");
  EXPECT_THAT(problem([](auto* s) { s->mutable_learners()->set_shard_optimizer_state(false); }),
              HasSubstr("learners.shard_parameters: expected learners.shard_optimizer_state too"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->set_gradient_checkpointing(false); }),
              HasSubstr("ppo.gradient_checkpointing: expected true with learners.shard_parameters"));
  EXPECT_THAT(problem([](auto* s) { s->mutable_ppo()->mutable_lora()->set_rank(8); }),
              HasSubstr("ppo.lora: expected none with learners.shard_parameters"));
}

TEST(SpecTest, RetentionIsOfJobsThatHaveWhatItKeeps) {
  const auto problem = [](v1::JobSpec spec, int steps, int checkpoints) {
    spec.mutable_retention()->set_sample_steps(steps);
    spec.mutable_retention()->set_checkpoints(checkpoints);
    return JoinProblems(CompleteSpec(&spec));
  };
  EXPECT_EQ(problem(Ppo(), 100, 2), "");
  EXPECT_EQ(problem(Ppo(), 0, 0), "");
  EXPECT_THAT(problem(Ppo(), 0, 1), HasSubstr("retention.checkpoints: expected 0 (all stay) or at least 2, found 1"));
  EXPECT_THAT(problem(Ppo(), -1, 0), HasSubstr("retention.sample_steps"));
  v1::JobSpec sample;
  sample.set_name("sample");
  sample.mutable_sample()->set_model("base");
  sample.mutable_sample()->set_prompts("prompts");
  EXPECT_EQ(problem(sample, 0, 0), "");
  EXPECT_THAT(problem(sample, 5, 0), HasSubstr("retention.sample_steps: expected a ppo job or a pipeline"));
  EXPECT_THAT(problem(sample, 0, 2), HasSubstr("retention.checkpoints: expected a job that trains"));
}

TEST(SpecTest, HeadsByCriterionNeedCriteriaAndAScorerMayWeighThem) {
  v1::JobSpec spec;
  spec.set_name("reward");
  spec.mutable_reward_model()->set_model("base");
  spec.mutable_reward_model()->set_data("human");
  spec.mutable_reward_model()->set_batch_size(8);
  spec.mutable_reward_model()->set_margin_by_strength(3);
  EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
  spec.mutable_reward_model()->set_criterion_heads(true);
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("reward_model.margin_by_strength: expected 0"));
  spec.mutable_reward_model()->set_margin_by_strength(0);
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("reward_model.criteria: expected at least one"));
  (*spec.mutable_reward_model()->mutable_criteria())["honest"] = 0;
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("reward_model.criteria: expected at least one"));
  (*spec.mutable_reward_model()->mutable_criteria())["honest"] = 1;
  EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");

  v1::JobSpec ppo = Ppo();
  auto& weights =
      *ppo.mutable_ppo()->mutable_scorer()->mutable_components(0)->mutable_reward_model()->mutable_criteria();
  weights["honest"] = 2;
  EXPECT_EQ(JoinProblems(CompleteSpec(&ppo)), "");
  weights["helpful"] = std::numeric_limits<double>::infinity();
  EXPECT_THAT(JoinProblems(CompleteSpec(&ppo)),
              HasSubstr("ppo.scorer.components[0].reward_model.criteria: expected names with finite weights"));
}

TEST(SpecTest, AnAdaptiveCoefficientStaysAboveZero) {
  const auto problems = [](double horizon, double coefficient, bool adaptive = true) {
    v1::JobSpec spec = Ppo();
    spec.mutable_ppo()->set_samples_per_prompt(128);  // 1024 samples a step
    spec.mutable_ppo()->mutable_kl()->set_adaptive(adaptive);
    spec.mutable_ppo()->mutable_kl()->set_horizon(horizon);
    spec.mutable_ppo()->mutable_kl()->set_coefficient(coefficient);
    return JoinProblems(CompleteSpec(&spec));
  };
  EXPECT_EQ(problems(205, 0.05), "");
  EXPECT_THAT(problems(204, 0.05),
              HasSubstr("ppo.kl.horizon: expected more than 204.8, a fifth of the step's samples"));
  EXPECT_EQ(problems(204, 0.05, /*adaptive=*/false), "");
  EXPECT_THAT(problems(10'000, 0), HasSubstr("ppo.kl.coefficient: expected more than 0 with kl.adaptive"));
  EXPECT_EQ(problems(10'000, 0, /*adaptive=*/false), "");
}

TEST(SpecTest, TheDefaultHorizonIsRefusedOfNoStep) {
  for (const auto& [samples, horizon] : {std::pair{128, 10'000.0}, {1250, 10'000.0}, {12'500, 100'000.0}}) {
    v1::JobSpec spec = Ppo();
    spec.mutable_ppo()->set_samples_per_prompt(samples);  // of each of 8 prompts
    spec.mutable_ppo()->mutable_kl()->set_adaptive(true);
    EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
    EXPECT_EQ(spec.ppo().kl().horizon(), horizon);
  }
}

TEST(SpecTest, DataOfPtxWithoutACoefficientWouldBeIgnored) {
  v1::JobSpec spec = Ppo();
  spec.mutable_ppo()->mutable_ptx()->set_data("facts");
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("ppo.ptx.coefficient: expected more than 0 with ptx.data"));
  spec.mutable_ppo()->mutable_ptx()->set_coefficient(0.5);
  EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
  spec.mutable_ppo()->mutable_ptx()->clear_data();
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("ppo.ptx.data"));
  spec.mutable_ppo()->mutable_ptx()->clear_coefficient();
  EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "");
}

TEST(SpecTest, RewardsAreWhitenedWithACriticOnly) {
  for (const auto advantage : {v1::GAE, v1::RLOO, v1::GRPO, v1::GRPO_NO_STD, v1::REINFORCE_BASELINE}) {
    v1::JobSpec spec = Ppo();
    spec.mutable_ppo()->set_samples_per_prompt(2);
    spec.mutable_ppo()->set_advantage(advantage);
    spec.mutable_ppo()->set_whiten_rewards(true);
    const std::string problems = JoinProblems(CompleteSpec(&spec));
    if (advantage == v1::GAE) {
      EXPECT_EQ(problems, "");
    } else {
      EXPECT_THAT(problems, HasSubstr(absl::StrCat("ppo.whiten_rewards: expected false with advantage ",
                                                   v1::AdvantageEstimator_Name(advantage))));
    }
  }
}

TEST(SpecTest, AStageMayNameEarlierStagesOfTheRightKindOnly) {
  v1::JobSpec spec;
  spec.set_name("line");
  v1::StageSpec* sample = spec.mutable_pipeline()->add_stages();
  sample->set_name("sample");
  sample->mutable_sample()->set_model("base");
  sample->mutable_sample()->set_prompts("prompts");
  v1::StageSpec* evaluate = spec.mutable_pipeline()->add_stages();
  evaluate->set_name("evaluate");
  evaluate->mutable_evaluate()->set_model("stage:sample");
  evaluate->mutable_evaluate()->set_suite("stage:later");
  const std::string problems = JoinProblems(CompleteSpec(&spec));
  EXPECT_THAT(problems, HasSubstr("pipeline.stages[1].evaluate.model: expected a stage that makes a model"));
  EXPECT_THAT(problems, HasSubstr("pipeline.stages[1].evaluate.suite: expected an earlier stage"));
  EXPECT_EQ(ReferencesOf(&spec).size(), 4u);
  sample->mutable_sample()->set_model("stage:evaluate");
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)),
              HasSubstr("expected an earlier stage (there is none before the first), found \"evaluate\""));
}

TEST(SpecTest, AGateOnTheWorstSliceIsCheckedWhenItIsSubmitted) {
  const auto problems = [](const std::string& metric, const std::string& of_stage) {
    v1::JobSpec spec;
    spec.set_name("p");
    v1::StageSpec* sample = spec.mutable_pipeline()->add_stages();
    sample->set_name("sample");
    sample->mutable_sample()->set_model("m");
    sample->mutable_sample()->set_prompts("p");
    v1::StageSpec* evaluate = spec.mutable_pipeline()->add_stages();
    evaluate->set_name("evaluate");
    evaluate->mutable_evaluate()->set_model("m");
    evaluate->mutable_evaluate()->set_suite("s");
    evaluate->mutable_evaluate()->add_slices("dialect");
    v1::GateCondition* condition = evaluate->mutable_gate()->add_conditions();
    condition->set_metric(metric);
    condition->set_stage(of_stage);
    condition->set_min(0.5);
    return JoinProblems(CompleteSpec(&spec));
  };
  EXPECT_THAT(problems("worst.known.accuracy", ""), testing::Not(HasSubstr("gate.conditions")));
  EXPECT_THAT(problems("worst.known.accuracy{dialect}", ""), testing::Not(HasSubstr("gate.conditions")));
  EXPECT_THAT(problems("worst.", ""), HasSubstr("expected worst.METRIC or worst.METRIC{TAG,TAG}, found \"worst.\""));
  EXPECT_THAT(problems("worst.accuracy{dialect=north}", ""), HasSubstr("without values"));
  EXPECT_THAT(problems("worst.accuracy{age}", ""), HasSubstr("declares as slices (dialect)"));
  EXPECT_THAT(problems("worst.score", "sample"), HasSubstr("a stage whose result has slices"));
}

// A reward model, then a policy in each of three rounds; the evaluation joins them in the second.
v1::JobSpec Rounds() {
  v1::JobSpec spec;
  spec.set_name("rounds");
  spec.mutable_pipeline()->set_rounds(3);
  const auto add = [&](const char* name) {
    v1::StageSpec* stage = spec.mutable_pipeline()->add_stages();
    stage->set_name(name);
    return stage;
  };
  v1::RewardModelSpec* reward = add("reward")->mutable_reward_model();
  reward->set_model("m");
  reward->set_data("d");
  reward->set_batch_size(8);
  *add("tune")->mutable_ppo() = Ppo().ppo();
  v1::StageSpec* after = add("after");
  after->set_from_round(2);
  after->mutable_evaluate()->set_model("stage:tune");
  after->mutable_evaluate()->set_suite("s");
  add("last")->mutable_evaluate()->set_model("stage:tune");
  spec.mutable_pipeline()->mutable_stages(3)->mutable_evaluate()->set_suite("s");
  return spec;
}

TEST(SpecTest, AGateOnAMetricThatNoStageMakesIsRefusedWhenItIsSubmitted) {
  const auto problems = [](const std::string& of_stage, const std::string& metric, int after = 3) {
    v1::JobSpec spec = Rounds();
    v1::GateCondition* condition = spec.mutable_pipeline()->mutable_stages(after)->mutable_gate()->add_conditions();
    condition->set_metric(metric);
    condition->set_stage(of_stage);
    condition->set_min(0.5);
    return JoinProblems(CompleteSpec(&spec));
  };
  for (const char* right : {"known.accuracy", "exact_answer", "geography.exact_answer", "known.accuracy{half=a}",
                            "worst.abstention{half}", "tune.kl", "reward.accuracy{pair=a over b}", "last.abstention"})
    EXPECT_EQ(problems("", right), "") << right;
  EXPECT_EQ(problems("reward", "ece{pair=a over b}"), "");
  EXPECT_EQ(problems("tune", "component/r"), "");
  const std::string wrong = problems("", "known.acuracy");
  EXPECT_THAT(wrong,
              HasSubstr("pipeline.stages[3].gate.conditions[0].metric: the gate after \"last\": expected a metric "
                        "of a stage that has run, found \"known.acuracy\" (did you mean \"known.accuracy\"?); \"last\" "
                        "has CATEGORY.abstention, CATEGORY.action_claim, "));
  EXPECT_THAT(wrong, HasSubstr("; with `stage`: \"reward\" has accuracy, "));
  EXPECT_THAT(wrong, HasSubstr("; with `stage`: \"tune\" has approx_kl, "));
  EXPECT_THAT(problems("", "kl"), HasSubstr("did you mean {stage: tune, metric: kl}?"));
  EXPECT_THAT(problems("tune", "gold/mean"), HasSubstr("\"gold/mean\"")) << "there is no gold scorer";
  EXPECT_THAT(problems("", "win_rate"), HasSubstr("\"win_rate\"")) << "against nothing";
  EXPECT_THAT(problems("", "worst.disparity"), HasSubstr("\"worst.disparity\""));
  EXPECT_THAT(problems("reward", "worst.length_correlation"), HasSubstr("\"worst.length_correlation\""));
  EXPECT_THAT(problems("after", "known.accuracy"),
              HasSubstr("gate.conditions[0].stage: expected a stage that has run when the gate after \"last\" "
                        "(from_round 1) looks, found \"after\", which runs from round 2 on"));
  EXPECT_EQ(problems("tune", "kl", 2), "");
  EXPECT_EQ(problems("", "worst.", 3).find("has CATEGORY"), std::string::npos) << "said once";
}

TEST(SpecTest, TheManifestsJobsAreValid) {
  for (const char* job : {"jobs/pipeline", "jobs/ppo", "components/jobset"}) {
    v1::JobSpec spec;
    const absl::Status parsed = LoadYamlFile(absl::StrCat(SourceDir(), "/deploy/", job, "/job.yaml"), {}, &spec);
    ASSERT_TRUE(parsed.ok()) << parsed;
    EXPECT_EQ(JoinProblems(CompleteSpec(&spec)), "") << job;
  }
}

TEST(SpecTest, AGateOnARewardModelThatHoldsNothingOutIsRefused) {
  v1::JobSpec spec = Rounds();
  v1::StageSpec* reward = spec.mutable_pipeline()->mutable_stages(0);
  reward->mutable_reward_model()->set_held_out_fraction(0);
  v1::GateCondition* condition = reward->mutable_gate()->add_conditions();
  condition->set_metric("accuracy");
  condition->set_min(0.5);
  EXPECT_THAT(JoinProblems(CompleteSpec(&spec)), HasSubstr("found \"accuracy\"; \"reward\" has none"));
}

TEST(StageMetricsTest, WhatCollectingHasMayBeAGatesCondition) {
  v1::StageSpec stage;
  stage.mutable_collect()->set_against("other");
  stage.mutable_collect()->set_planted("known");
  std::vector<v1::Comparison> comparisons;
  for (int i = 0; i < 8; ++i) {
    v1::Comparison& comparison = comparisons.emplace_back();
    comparison.mutable_prompt()->set_text(absl::StrCat("Q", i / 2));
    comparison.mutable_prompt()->set_category("sums");
    (*comparison.mutable_prompt()->mutable_tags())["half"] = "a";
    comparison.mutable_first()->set_text("one");
    comparison.mutable_second()->set_text("two");
    comparison.mutable_second()->set_source("against");
    comparison.set_rater(i % 2 == 0 ? "anna" : "ben");
    comparison.set_rater_group(comparison.rater());
    comparison.set_preference(v1::FIRST);
    (*comparison.mutable_first_ratings())["honest"] = i;
    (*comparison.mutable_second_ratings())["honest"] = 2;
    comparison.set_planted(i > 5);
  }
  const auto metrics = CollectMetrics(comparisons, stage.collect());
  EXPECT_EQ(metrics.count("sums.win_rate"), 1u);
  EXPECT_EQ(metrics.count("planted_accuracy"), 1u);
  for (const auto& [name, metric] : metrics) EXPECT_TRUE(MayHaveMetric(stage, name)) << name;
  EXPECT_TRUE(MayHaveMetric(stage, "comparisons"));
  stage.mutable_collect()->clear_against();
  EXPECT_FALSE(MayHaveMetric(stage, "sums.win_rate"));
}

TEST(CollectMetricsTest, AgreementIsOfTheQuestionsAndPlantedOnesAreApart) {
  // Everybody knows the planted questions' answers, and the two raters disagree about all others.
  std::vector<v1::Comparison> comparisons;
  for (int i = 0; i < 40; ++i) {
    v1::Comparison& comparison = comparisons.emplace_back();
    comparison.mutable_prompt()->set_text(absl::StrCat("Q", i / 2));
    comparison.mutable_first()->set_text("one");
    comparison.mutable_second()->set_text("two");
    comparison.set_planted(i < 20);
    comparison.set_known(v1::FIRST);
    comparison.set_rater(i % 2 == 0 ? "anna" : "ben");
    comparison.set_preference(i < 20 || i % 2 == 0 ? v1::FIRST : v1::SECOND);
  }
  const auto metrics = CollectMetrics(comparisons, v1::CollectSpec());
  EXPECT_EQ(metrics.at("planted_accuracy").value(), 1);
  EXPECT_EQ(metrics.at("agreement").value(), 0);
  EXPECT_EQ(metrics.at("agreement").n(), 10);
  EXPECT_LT(metrics.at("agreement.alpha").value(), 0);
  comparisons.resize(20);
  EXPECT_EQ(CollectMetrics(comparisons, v1::CollectSpec()).count("agreement"), 0u) << "no question had two answers";
}

v1::Sample Graded(const std::string& category, double exact, double abstains, double claims,
                  const std::string& template_id) {
  v1::Sample sample;
  sample.mutable_prompt()->set_category(category);
  (*sample.mutable_prompt()->mutable_tags())["template"] = template_id;
  for (const auto& [name, value] :
       std::map<std::string, double>{{"exact_answer", exact}, {"abstention", abstains}, {"action_claim", claims}}) {
    v1::ComponentScore* score = sample.mutable_score()->add_components();
    score->set_name(name);
    score->set_value(value);
  }
  return sample;
}

std::map<std::string, v1::Metric> EvaluationMetrics(const v1::ScorerSpec& graders,
                                                    const std::vector<v1::Sample>& samples) {
  EvaluationTally tally(graders);
  for (const v1::Sample& sample : samples) tally.Add(sample);
  return tally.Metrics();
}

TEST(EvaluationTest, RatesByCategoryAndSlice) {
  v1::JobSpec spec;
  spec.set_name("e");
  spec.mutable_evaluate()->set_model("m");
  spec.mutable_evaluate()->set_suite("s");
  ASSERT_TRUE(CompleteSpec(&spec).empty());
  const auto metrics =
      EvaluationMetrics(spec.evaluate().graders(), {Graded("known", 1, 0, 0, "a"), Graded("known", 0, 1, 0, "b"),
                                                    Graded("unknown", 0, 0, 0, "a"), Graded("unknown", 0, 1, 0, "b"),
                                                    Graded("unknown", 0, 0, 0, "b"), Graded("action", 0, 0, 1, "a")});
  EXPECT_DOUBLE_EQ(metrics.at("known.accuracy").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics.at("known.needless_abstention").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics.at("unknown.hallucination").value(), 2.0 / 3);
  EXPECT_DOUBLE_EQ(metrics.at("unknown.hallucination{template=b}").value(), 0.5);
  EXPECT_DOUBLE_EQ(metrics.at("unknown.abstention").value(), 1.0 / 3);
  EXPECT_DOUBLE_EQ(metrics.at("exact_answer").value(), 1.0 / 6);
  ASSERT_EQ(metrics.count("exact_answer{template=a}"), 1u) << "a tag's slice is of all categories";
  EXPECT_DOUBLE_EQ(metrics.at("exact_answer{template=a}").value(), 1.0 / 3);
  EXPECT_EQ(metrics.at("exact_answer{template=b}").n(), 3);
  EXPECT_DOUBLE_EQ(metrics.at("known.exact_answer{template=a}").value(), 1);
  EXPECT_EQ(metrics.at("unknown.abstention").n(), 3);
  EXPECT_DOUBLE_EQ(metrics.at("action.over_claim").value(), 1);
  v1::StageSpec stage;
  *stage.mutable_evaluate() = spec.evaluate();
  for (const auto& [name, metric] : metrics) EXPECT_TRUE(MayHaveMetric(stage, name)) << name;
}

TEST(EvaluationTest, AScoreWithoutARangeIsBootstrappedAndOneValueHasNoInterval) {
  v1::JobSpec spec;
  v1::RewardComponent* liked = spec.mutable_evaluate()->mutable_graders()->add_components();
  liked->set_name("liked");
  liked->mutable_reward_model()->set_model("m");
  v1::RewardComponent* exact = spec.mutable_evaluate()->mutable_graders()->add_components();
  exact->set_name("exact_answer");
  exact->mutable_exact_answer();
  std::vector<v1::Sample> samples;
  for (int i = 0; i < 60; ++i) {
    v1::ComponentScore* score = samples.emplace_back(Graded("known", 1, 0, 0, "a")).mutable_score()->add_components();
    score->set_name("liked");
    score->set_value(i % 10 == 0 ? 12 : 0.5);  // far from normal
  }
  const auto metrics = EvaluationMetrics(spec.evaluate().graders(), samples);
  const v1::Metric& mean = metrics.at("known.liked");
  EXPECT_NEAR(mean.value(), 1.65, 1e-12);
  EXPECT_GT(mean.high() - mean.value(), mean.value() - mean.low()) << "it leans as the values do";
  EXPECT_LT(metrics.at("known.exact_answer").low(), 0.95) << "60 right answers are not certainty";
  samples.resize(1);
  const auto one = EvaluationMetrics(spec.evaluate().graders(), samples);
  EXPECT_FALSE(one.at("known.liked").has_low());
  EXPECT_LT(one.at("known.exact_answer").low(), 0.25);
}

TEST(EvaluationTest, APatternThatCountsForLessThanNothingHasNoIntervalOfRates) {
  // Nothing matched so far; what is counted may be -1, and 0 to 0.3 is no interval of that.
  std::vector<v1::Sample> samples(8);
  for (v1::Sample& sample : samples) sample.mutable_score()->add_components()->set_name("rude");
  const auto rude = [&](double match, double no_match) {
    v1::ScorerSpec graders;
    v1::RewardComponent* component = graders.add_components();
    component->set_name("rude");
    component->mutable_regex()->set_pattern("idiot");
    component->mutable_regex()->set_match(match);
    component->mutable_regex()->set_no_match(no_match);
    return EvaluationMetrics(graders, samples).at("rude");
  };
  EXPECT_TRUE(rude(1, 0).has_high());
  EXPECT_TRUE(rude(0, 1).has_high());
  EXPECT_FALSE(rude(-1, 0).has_high());
  EXPECT_FALSE(rude(0, 5).has_high());
}

TEST(CollectTasksTest, NoQuestionIsAskedTwiceAndTheShareOfWrittenOnesHolds) {
  std::vector<artifact::SampleRecord> samples;
  for (int p = 0; p < 300; ++p) {
    for (int i = 0; i < 2; ++i) {
      artifact::SampleRecord sample;
      sample.id = absl::StrCat(p);
      sample.prompt = absl::StrCat("prompt ", p);
      sample.response = absl::StrCat("answer ", i);
      sample.index = i;
      samples.push_back(sample);
    }
  }
  v1::CollectSpec spec;
  spec.set_comparisons(400);
  spec.set_written_candidate_fraction(0.7);
  const auto tasks = MakeTasks({samples, {}, {}}, spec, 3, "job", "default");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  ASSERT_EQ(tasks->size(), 400u);
  std::set<std::string> asked;
  int written = 0;
  for (const v1::FeedbackTask& task : *tasks) {
    written += task.second().source() == "written" ? 1 : 0;
    EXPECT_NE(task.first().text(), task.second().text());
    EXPECT_TRUE(
        asked.insert(absl::StrCat(task.prompt().text(), "|", task.first().text(), "|", task.second().text())).second);
  }
  EXPECT_NEAR(written / 400.0, 0.7, 0.1);
  EXPECT_EQ(MakeTasks({samples, {}, {}}, spec, 3, "job", "default")->back().SerializeAsString(),
            tasks->back().SerializeAsString());
  spec.set_comparisons(5000);
  const auto too_many = MakeTasks({samples, {}, {}}, spec, 3, "job", "default");
  EXPECT_EQ(too_many.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CollectTasksTest, QuestionsThatRunOutAreAnErrorAlsoWhereSomePromptsHaveNone) {
  // Six prompts with one pair each, four whose answers are all alike.
  std::vector<artifact::SampleRecord> samples;
  for (int prompt = 0; prompt < 10; ++prompt) {
    for (int index = 0; index < 2; ++index) {
      artifact::SampleRecord& sample = samples.emplace_back();
      sample.id = sample.prompt = absl::StrCat("p", prompt);
      sample.index = index;
      sample.response = absl::StrCat("answer ", prompt < 6 ? index : 0);
    }
  }
  v1::CollectSpec spec;
  spec.set_comparisons(8);
  const auto tasks = MakeTasks({samples, {}, {}}, spec, 1, "job", "default");
  EXPECT_EQ(tasks.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(tasks.status().message()), HasSubstr("6 different questions"));
}

}  // namespace
}  // namespace rlhf::coordinator
