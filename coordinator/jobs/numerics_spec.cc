#include "coordinator/jobs/numerics_spec.h"

#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

constexpr int kMostRank = 4096;

class Check {
 public:
  Check(bool deterministic, std::string prefix, std::vector<v1::SpecProblem>* problems)
      : deterministic_(deterministic), prefix_(std::move(prefix)), problems_(problems) {}

  template <typename Message>
  void Kind(Message* m) {
    if (m->has_sft()) {
      Precision("sft.precision", m->sft().precision());
      if (m->sft().has_lora()) Lora("sft.lora", m->mutable_sft()->mutable_lora());
    } else if (m->has_reward_model()) {
      Precision("reward_model.precision", m->reward_model().precision());
      if (m->reward_model().has_lora()) Lora("reward_model.lora", m->mutable_reward_model()->mutable_lora());
    } else if (m->has_ppo()) {
      Ppo(m->mutable_ppo());
    }
  }
  // Layers that are gathered when they are computed: in a job of this kind, by these learners.
  template <typename Message>
  void DividedLayers(const Message& m, const v1::LearnerGroupSpec& learners) {
    if (!learners.shard_parameters()) return;
    if (!learners.shard_optimizer_state()) {
      Problem("learners.shard_parameters",
              "expected learners.shard_optimizer_state too: a rank's share of the weights is that of its optimizer");
    }
    const auto kind = [this](const char* name, bool checkpointing, bool lora) {
      if (!checkpointing) {
        Problem(absl::StrCat(name, ".gradient_checkpointing"),
                "expected true with learners.shard_parameters: a layer's weights are there while it is computed, and "
                "again for its backward");
      }
      if (lora) {
        Problem(absl::StrCat(name, ".lora"),
                "expected none with learners.shard_parameters: what trains then is small, and the base is held whole");
      }
    };
    if (m.has_sft()) kind("sft", m.sft().gradient_checkpointing(), m.sft().has_lora());
    if (m.has_reward_model())
      kind("reward_model", m.reward_model().gradient_checkpointing(), m.reward_model().has_lora());
    if (m.has_ppo()) kind("ppo", m.ppo().gradient_checkpointing(), m.ppo().has_lora());
  }
  void Learners(const v1::LearnerGroupSpec& learners) {
    if (!deterministic_ || !learners.has_min_ranks() || learners.min_ranks() == learners.ranks()) return;
    Problem("learners.min_ranks", absl::StrCat("expected ", learners.ranks(),
                                               " (or nothing) in a deterministic job: sums over another number of "
                                               "ranks are other bytes"));
  }

 private:
  void Ppo(v1::PpoSpec* ppo) {
    Precision("ppo.precision", ppo->precision());
    if (deterministic_ && ppo->max_policy_lag() != 0) {
      Problem("ppo.max_policy_lag", absl::StrCat("expected 0 in a deterministic job, found ", ppo->max_policy_lag()));
    }
    if (!ppo->has_lora()) return;
    Lora("ppo.lora", ppo->mutable_lora());
    if (!ppo->reference().empty() && ppo->reference() != ppo->policy()) {
      Problem("ppo.reference",
              "expected the policy itself (or nothing) in a job with lora: the reference is its base, adapters off");
    }
  }
  void Lora(const char* field, v1::LoraSpec* lora) {
    if (lora->rank() < 1 || lora->rank() > kMostRank)
      Problem(absl::StrCat(field, ".rank"), absl::StrCat("expected 1 to ", kMostRank, ", found ", lora->rank()));
    if (!lora->has_alpha()) lora->set_alpha(lora->rank());
    if (!(lora->alpha() > 0) || !std::isfinite(lora->alpha()))
      Problem(absl::StrCat(field, ".alpha"), absl::StrCat("expected more than 0, found ", lora->alpha()));
    for (const std::string& target : lora->target_modules()) {
      if (target.empty())
        Problem(absl::StrCat(field, ".target_modules"), "expected modules' names, found an empty one");
    }
  }
  void Precision(const std::string& field, v1::Precision precision) {
    if (deterministic_ && precision == v1::BFLOAT16)
      Problem(field, "expected FLOAT32 in a deterministic job, found BFLOAT16");
  }
  void Problem(const std::string& field, const std::string& problem) {
    v1::SpecProblem& added = problems_->emplace_back();
    added.set_field(prefix_ + field);
    added.set_problem(problem);
  }

  bool deterministic_;
  std::string prefix_;
  std::vector<v1::SpecProblem>* problems_;
};

}  // namespace

void CheckNumerics(v1::JobSpec* spec, std::vector<v1::SpecProblem>* problems) {
  Check whole(spec->deterministic(), "", problems);
  whole.Learners(spec->learners());
  if (!spec->has_pipeline()) {
    whole.DividedLayers(*spec, spec->learners());
    return whole.Kind(spec);
  }
  for (int i = 0; i < spec->pipeline().stages_size(); ++i) {
    v1::StageSpec* stage = spec->mutable_pipeline()->mutable_stages(i);
    Check check(spec->deterministic(), absl::StrCat("pipeline.stages[", i, "]."), problems);
    if (stage->has_learners()) check.Learners(stage->learners());
    check.DividedLayers(*stage, stage->has_learners() ? stage->learners() : spec->learners());
    check.Kind(stage);
  }
}

}  // namespace rlhf::coordinator
