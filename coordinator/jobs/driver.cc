#include "coordinator/jobs/driver.h"

#include <numeric>
#include <utility>

#include <xxhash.h>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/prompt.h"
#include "common/split_mix64.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

absl::StatusOr<std::shared_ptr<const std::vector<v1::Prompt>>> ReadPrompts(const std::string& path, bool shuffle,
                                                                           uint64_t seed, int limit) {
  RLHF_ASSIGN_OR_RETURN(std::vector<artifact::PromptRecord> records, artifact::ReadPromptData(path));
  std::vector<size_t> order(records.size());
  std::iota(order.begin(), order.end(), 0);
  if (shuffle) {
    SplitMix64 random(seed);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  }
  if (limit > 0 && order.size() > static_cast<size_t>(limit)) order.resize(limit);
  auto prompts = std::make_shared<std::vector<v1::Prompt>>();
  for (const size_t i : order) {
    const artifact::PromptRecord record = std::exchange(records[i], {});  // not all texts twice
    v1::Prompt& prompt = prompts->emplace_back();
    prompt.set_id(record.id);
    prompt.set_text(record.prompt);
    artifact::SetMessages(record.messages, &prompt);
    prompt.set_reference(record.reference);
    prompt.set_category(record.category);
    prompt.mutable_tags()->insert(record.tags.begin(), record.tags.end());
  }
  return prompts;
}

}  // namespace

void FailOrTryVolumeAgain(JobHost* host, const std::string& job_id, const absl::Status& status,
                          std::string* unpublished, std::function<void()> again) {
  if (ReasonOf(status) != v1::STORE_UNAVAILABLE) return host->Fail(job_id, "STORE", std::string(status.message()));
  *unpublished = std::string(status.message());
  host->deps().loop->PostAfter(kTryVolumeAgain, host->WhileActive(job_id, std::move(again)));
}

void LoadPrompts(const JobsDeps& deps, const std::string& digest, bool shuffle, uint64_t seed, int limit,
                 absl::AnyInvocable<void(absl::StatusOr<std::shared_ptr<const std::vector<v1::Prompt>>>)> then) {
  deps.background->Run(
      [deps, find = deps.artifacts->Locate(digest), digest, shuffle, seed, limit, then = std::move(then)]() mutable {
        const absl::StatusOr<std::string> path = find();
        if (ReasonOf(path.status()) == v1::STORE_UNAVAILABLE) {
          return deps.loop->PostAfter(kTryVolumeAgain,
                                      [deps, digest, shuffle, seed, limit, then = std::move(then)]() mutable {
                                        LoadPrompts(deps, digest, shuffle, seed, limit, std::move(then));
                                      });
        }
        using Prompts = absl::StatusOr<std::shared_ptr<const std::vector<v1::Prompt>>>;
        Prompts prompts = path.ok() ? ReadPrompts(*path, shuffle, seed, limit) : Prompts(path.status());
        deps.loop->Post([prompts = std::move(prompts), then = std::move(then)]() mutable { then(std::move(prompts)); });
      });
}

std::string Resolved(const v1::Job& job, const std::string& reference) {
  const auto it = job.resolved().find(reference);
  return it == job.resolved().end() ? std::string() : it->second;
}

v1::ScorerSpec ResolvedScorer(const v1::Job& job, v1::ScorerSpec scorer) {
  for (v1::RewardComponent& component : *scorer.mutable_components()) {
    if (component.has_reward_model())
      component.mutable_reward_model()->set_model(Resolved(job, component.reward_model().model()));
    if (component.has_ensemble()) {
      for (std::string& model : *component.mutable_ensemble()->mutable_models()) model = Resolved(job, model);
    }
  }
  return scorer;
}

SamplingPlan PlanOf(const v1::Job& job) {
  SamplingPlan plan;
  plan.job_id = job.id();
  plan.project = job.spec().project();
  plan.submitter = job.submitted_by();
  plan.priority = job.spec().priority();
  plan.seed = job.spec().seed();
  plan.stream = NoiseStream(job);
  return plan;
}

uint32_t NoiseStream(const v1::Job& job) {
  std::string name = job.stage();
  if (job.round() > 1 || job.repeat() > 0) absl::StrAppend(&name, "/", job.round(), "/", job.repeat());
  return XXH32(name.data(), name.size(), 0);
}

v1::JobState StateAfterPause(const v1::Job& job) {
  if (job.spec().has_collect()) return v1::WAITING;
  return job.has_started_at() ? v1::RUNNING : v1::PENDING;
}

void DescribeSamples(const JobsDeps& deps, const std::string& job_id, SampleFacts* facts) {
  const Sampling::Situation situation = deps.sampling->SituationOf(job_id);
  facts->generates = true;
  facts->counts = situation.counts;
  facts->rollout_workers = situation.rollout_workers;
  facts->reward_servers = situation.reward_servers;
  facts->unsuited_workers = situation.unsuited_workers;
  facts->unsuited_why = situation.unsuited_why;
  facts->unsuited_reward_servers = situation.unsuited_reward_servers;
  facts->unsuited_reward_why = situation.unsuited_reward_why;
  facts->too_large_samples = situation.too_large_samples;
  facts->too_large_why = situation.too_large_why;
  facts->serving_this = situation.serving_this;
  facts->loading = situation.loading;
  facts->loading_by = situation.loading_by;
  facts->loading_for = situation.loading_for;
  facts->rollout_holders = situation.rollout_holders;
  facts->over_quota = situation.over_quota;
  facts->score_requests = situation.score_requests;
  facts->since = situation.since_last;
  facts->last_problem = deps.sampling->LastProblem(job_id);
}

}  // namespace rlhf::coordinator
