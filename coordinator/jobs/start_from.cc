#include "coordinator/jobs/start_from.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/jobs/checkpoint_chain.h"
#include "coordinator/jobs/committed_steps.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/ledger.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kStepsNamed = 20;

bool HasCritic(const v1::PpoSpec& spec) {
  return spec.advantage() == v1::GAE;
}

int64_t UpdatesAStep(const v1::PpoSpec& spec) {
  const int64_t samples = int64_t{spec.prompts_per_step()} * spec.samples_per_prompt();
  const int64_t minibatch = spec.minibatch_size() > 0 ? spec.minibatch_size() : samples;
  return spec.epochs() * ((samples + minibatch - 1) / minibatch);
}

std::string LoraText(bool has, const v1::LoraSpec& lora) {
  return has ? absl::StrCat("{", lora.ShortDebugString(), "}") : "none";
}

// Each head's place is its criterion's in the order of names.
std::string HeadsText(const v1::RewardModelSpec& spec) {
  if (!spec.criterion_heads()) return "one head";
  std::set<std::string> names;
  for (const auto& [name, weight] : spec.criteria()) names.insert(name);
  return absl::StrCat("heads of ", absl::StrJoin(names, ", "));
}

// Compares what shapes the state with the job that is gone on from.
class LikeThere {
 public:
  LikeThere(const v1::Job& from, const v1::JobSpec& spec, const std::map<std::string, std::string>& resolved,
            std::vector<v1::SpecProblem>* problems)
      : from_(from), spec_(spec), resolved_(resolved), problems_(problems) {}

  void Kind() {
    if (KindOf(spec_) != KindOf(from_.spec())) {
      return Problem("start_from.job",
                     absl::StrCat("expected a job of the kind ", KindOf(spec_), ", found ", KindOf(from_.spec())));
    }
    if (spec_.has_sft()) {
      const v1::SftSpec &here = spec_.sft(), &there = from_.spec().sft();
      Shape("sft", here, there);
      Model("sft.model", here.model(), there.model());
    } else if (spec_.has_reward_model()) {
      RewardModel(spec_.reward_model(), from_.spec().reward_model());
    } else {
      Ppo(spec_.ppo(), from_.spec().ppo());
    }
  }
  void Steps(int64_t start) {
    const int64_t steps = spec_.has_ppo() ? spec_.ppo().steps() : spec_.sft().steps();
    if (!spec_.has_reward_model() && steps <= start) {
      Problem(absl::StrCat(KindOf(spec_), ".steps"),
              absl::StrCat("expected more than ", start, ", where it starts from, found ", steps,
                           ": steps are counted from the beginning of ", from_.id()));
    }
  }
  void Problem(const std::string& field, const std::string& problem) {
    v1::SpecProblem& added = problems_->emplace_back();
    added.set_field(field);
    added.set_problem(problem);
  }

 private:
  void RewardModel(const v1::RewardModelSpec& here, const v1::RewardModelSpec& there) {
    Shape("reward_model", here, there);
    Model("reward_model.model", here.model(), there.model());
    const std::string heads = HeadsText(here), heads_there = HeadsText(there);
    if (heads != heads_there) Unlike("reward_model.criterion_heads", heads_there, heads);
  }
  void Ppo(const v1::PpoSpec& here, const v1::PpoSpec& there) {
    Shape("ppo", here, there);
    Model("ppo.policy", here.policy(), there.policy());
    if (HasCritic(here) != HasCritic(there)) {
      Unlike("ppo.advantage", v1::AdvantageEstimator_Name(there.advantage()),
             v1::AdvantageEstimator_Name(here.advantage()));
    } else if (HasCritic(here)) {
      Model("ppo.critic", here.critic(), there.critic());
    }
    // The checkpoint's is what it has become: a start that would be ignored is not what was asked for.
    if (here.kl().adaptive() && here.kl().coefficient() != there.kl().coefficient()) {
      Problem("ppo.kl.coefficient",
              absl::StrCat("expected ", there.kl().coefficient(), " as in ", from_.id(), ", found ",
                           here.kl().coefficient(),
                           ": an adaptive coefficient goes on from the checkpoint's; adaptive: false sets another"));
    }
    const auto decays = [](const v1::OptimizerSpec& optimizer) { return optimizer.schedule() != v1::CONSTANT; };
    if (decays(here.policy_optimizer()) && here.critic_warmup_steps() != there.critic_warmup_steps()) {
      Problem("ppo.critic_warmup_steps",
              absl::StrCat("expected ", there.critic_warmup_steps(), " as in ", from_.id(), ", found ",
                           here.critic_warmup_steps(),
                           ": a schedule that decays counts the policy's updates; or choose CONSTANT"));
    }
    if (UpdatesAStep(here) == UpdatesAStep(there)) return;
    if (decays(here.policy_optimizer()) || (HasCritic(here) && decays(here.critic_optimizer()))) {
      Problem(
          "ppo.epochs",
          absl::StrCat("expected ", UpdatesAStep(there), " updates a step (epochs · minibatches) as in ", from_.id(),
                       ", found ", UpdatesAStep(here), ": a schedule that decays counts updates; or choose CONSTANT"));
    }
  }
  template <typename Kind>
  void Shape(const std::string& kind, const Kind& here, const Kind& there) {
    const auto precision = [](const Kind& of) { return of.precision() == v1::BFLOAT16 ? "BFLOAT16" : "FLOAT32"; };
    if (std::string(precision(here)) != precision(there))
      Unlike(kind + ".precision", precision(there), precision(here));
    const std::string lora = LoraText(here.has_lora(), here.lora()),
                      lora_there = LoraText(there.has_lora(), there.lora());
    if (lora != lora_there) Unlike(kind + ".lora", lora_there, lora);
  }
  void Model(const std::string& field, const std::string& here, const std::string& there) {
    const auto found = resolved_.find(here);
    const std::string digest = found == resolved_.end() ? here : found->second, expected = Resolved(from_, there);
    if (digest != expected) Unlike(field, expected, digest);
  }
  void Unlike(const std::string& field, const std::string& expected, const std::string& found) {
    Problem(field, absl::StrCat("expected ", expected, " as in ", from_.id(),
                                ", whose state it goes on from (start_from), found ", found));
  }

  const v1::Job& from_;
  const v1::JobSpec& spec_;
  const std::map<std::string, std::string>& resolved_;
  std::vector<v1::SpecProblem>* problems_;
};

// That are still there, by step: those that the job may go back to, and what its retention has let go and somebody has
// pinned or named.
std::map<int64_t, std::string> StartsOf(const v1::Job& from, StateStore* store, Artifacts* artifacts) {
  std::map<int64_t, std::string> starts = CheckpointsOf(from, store);
  v1::ListArtifactsRequest request;
  request.set_project(from.spec().project());
  request.set_kind("checkpoint");
  request.mutable_page()->set_page_size(1000);
  do {
    const absl::StatusOr<v1::ListArtifactsResponse> page = artifacts->List(request);
    if (!page.ok()) break;
    for (const v1::Artifact& artifact : page->artifacts()) {
      if (artifact.created_by() == from.id() && artifact.step() > 0) starts.emplace(artifact.step(), artifact.digest());
    }
    request.mutable_page()->set_page_token(page->next_page_token());
  } while (!request.page().page_token().empty());
  std::erase_if(starts,
                [&](const auto& start) { return !artifacts->Resolve(start.second, from.spec().project()).ok(); });
  return starts;
}

// Prompts that a job had issued for its steps up to this one. A step's may be replaced until it is trained, and so far
// the window reaches beyond it.
int64_t PromptsIssued(const v1::Job& from, int64_t step, StateStore* store) {
  int64_t issued = from.start().prompt_cursor();
  for (int64_t s = std::max<int64_t>(1, step - from.spec().ppo().max_policy_lag()); s <= step; ++s) {
    (void)store->Scan(Table::kSamples, KeyOf(Ledger::Prefix(from.id()), {static_cast<uint64_t>(s)}),
                      [&](absl::string_view, absl::string_view value) {
                        v1::SampleRow row;
                        row.ParseFromArray(value.data(), static_cast<int>(value.size()));
                        issued = std::max(issued, row.prompt_index() + 1);
                        return true;
                      });
  }
  return issued;
}

}  // namespace

void FillInFromStart(const v1::Job* from, v1::JobSpec* spec) {
  if (from == nullptr || !spec->has_ppo() || !from->spec().has_ppo() || !HasCritic(from->spec().ppo())) return;
  v1::PpoSpec* ppo = spec->mutable_ppo();
  const bool critic = ppo->advantage() == v1::GAE || ppo->advantage() == v1::ADVANTAGE_ESTIMATOR_UNSPECIFIED;
  if (critic && ppo->critic().empty()) ppo->set_critic(Resolved(*from, from->spec().ppo().critic()));
}

v1::StartPoint FindStart(const v1::Job* job, const std::map<std::string, std::string>& resolved, StateStore* store,
                         Artifacts* artifacts, v1::JobSpec* spec, std::vector<v1::SpecProblem>* problems) {
  v1::StartPoint start;
  if (!spec->has_start_from()) return start;
  if (job == nullptr) {
    v1::SpecProblem& added = problems->emplace_back();
    added.set_field("start_from.job");
    added.set_problem(absl::StrCat("expected a job of the project ", spec->project(), ", found \"",
                                   spec->start_from().job(), "\"; `rlhfctl list` names those there are"));
    return start;
  }
  const v1::Job& from = *job;
  LikeThere like(from, *spec, resolved, problems);
  like.Kind();
  if (!problems->empty()) return start;
  const std::map<int64_t, std::string> starts = StartsOf(from, store, artifacts);
  if (starts.empty()) {
    like.Problem("start_from.job", absl::StrCat("expected a job with a checkpoint, found none of ", from.id()));
    return start;
  }
  v1::StartFromSpec* named = spec->mutable_start_from();
  const auto found = named->step() == 0 ? std::prev(starts.end()) : starts.find(named->step());
  if (found == starts.end()) {
    std::vector<int64_t> steps;
    for (auto it = starts.rbegin(); it != starts.rend() && steps.size() < kStepsNamed; ++it) steps.push_back(it->first);
    like.Problem("start_from.step", absl::StrCat("expected a step of which ", from.id(), " has a checkpoint, found ",
                                                 named->step(), "; there are those of ", absl::StrJoin(steps, ", "),
                                                 starts.size() > steps.size() ? " and older ones" : ""));
    return start;
  }
  like.Steps(found->first);
  start.set_job_id(from.id());
  start.set_step(found->first);
  start.set_checkpoint(found->second);
  if (spec->has_ppo()) {
    const bool there = found->first == from.start().step();
    start.set_weights_digest(there ? from.start().weights_digest() : CommittedWeights(store, from.id(), found->first));
    start.set_prompt_cursor(PromptsIssued(from, found->first, store));
    if (start.weights_digest().empty()) {
      like.Problem("start_from.step",
                   absl::StrCat("expected a step that ", from.id(), " has committed, found ", found->first,
                                ", which it has gone back behind; choose another one"));
    }
  }
  named->set_job(from.id());
  named->set_step(found->first);
  return start;
}

void BeginAt(JobHost* host, const v1::StartPoint& start, v1::Job* row, WriteBatch* batch) {
  host->AppendMessage(
      row, absl::StrCat("goes on from step ", start.step(), " of ", start.job_id(), ", ", start.checkpoint()), batch);
  *row->mutable_start() = start;
  batch->Put(Table::kMeta, CheckpointKey(row->id(), start.step()), start.checkpoint());
  row->set_checkpoint(start.checkpoint());
  row->set_checkpoint_step(start.step());
  row->set_step(start.step());
  if (!row->spec().has_ppo()) return;
  row->mutable_version()->set_step(start.step());
  row->mutable_version()->set_digest(start.weights_digest());
  row->set_issued_through_step(start.step());
  row->set_prompt_cursor(start.prompt_cursor());
}

}  // namespace rlhf::coordinator
