#include "learner/service/run_metrics.h"

#include <utility>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include "absl/time/clock.h"

namespace rlhf::learner {
namespace {

constexpr absl::Duration kKeptAfterEnd = absl::Minutes(15);

struct NamedValue {
  const char* key;
  const char* name;
  const char* help;
};
constexpr NamedValue kOfStep[] = {
    {"kl", "rlhf_learner_kl", "KL to the reference, nats a sequence."},
    {"kl_coefficient", "rlhf_learner_kl_coefficient", "The KL penalty's weight."},
    {"clip_ratio", "rlhf_learner_clip_ratio", "Share of tokens whose ratio was clipped."},
    {"first_minibatch_ratio_error", "rlhf_learner_first_minibatch_ratio_error",
     "How far the first ratios of new to old are from 1: the learner disagrees with itself."},
    {"mismatch_kl", "rlhf_learner_mismatch_kl", "KL between the behaviour's and the learner's log-probabilities."},
    {"grad_norm/policy", "rlhf_learner_grad_norm", "Norm of the policy's gradient before clipping."},
    {"entropy", "rlhf_learner_entropy", "The policy's entropy, nats a token."},
    {"explained_variance", "rlhf_learner_explained_variance", "Share of the returns' variance the critic explains."},
    {"reward/mean", "rlhf_learner_reward_mean", "Mean score of the step's samples."},
    {"response_length", "rlhf_learner_response_length", "Mean tokens of a response."},
};
const char* const kJobSeries[] = {"rlhf_learner_kl",
                                  "rlhf_learner_kl_coefficient",
                                  "rlhf_learner_clip_ratio",
                                  "rlhf_learner_first_minibatch_ratio_error",
                                  "rlhf_learner_mismatch_kl",
                                  "rlhf_learner_grad_norm",
                                  "rlhf_learner_entropy",
                                  "rlhf_learner_explained_variance",
                                  "rlhf_learner_reward_mean",
                                  "rlhf_learner_response_length",
                                  "rlhf_learner_gold_gap",
                                  "rlhf_learner_loss",
                                  "rlhf_learner_wait_for_samples_ratio",
                                  "rlhf_checkpoint_last_success_timestamp_seconds"};

const std::vector<double>& StepBuckets() {
  static const std::vector<double>* const buckets =
      new std::vector<double>{0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800};
  return *buckets;
}

prometheus::Histogram& StepSeconds(MetricsRegistry* registry, const char* phase) {
  return registry->Histogram("rlhf_learner_step_seconds", "Time of a step, by phase.", StepBuckets(),
                             {{"phase", phase}});
}

prometheus::Counter& Tokens(MetricsRegistry* registry) {
  return registry->Counter("rlhf_learner_tokens_total", "Tokens trained on.");
}

prometheus::Histogram& CheckpointSeconds(MetricsRegistry* registry) {
  return registry->Histogram("rlhf_checkpoint_seconds", "Time until a checkpoint was durable.", StepBuckets());
}

prometheus::Histogram& AllreduceSeconds(MetricsRegistry* registry) {
  return registry->Histogram("rlhf_learner_allreduce_seconds", "Time a rank waited for a sum over the ranks.",
                             {0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30});
}

double ValueOr(const std::map<std::string, double>& values, const std::string& key, double otherwise) {
  const auto found = values.find(key);
  return found == values.end() ? otherwise : found->second;
}

}  // namespace

RunMetrics::RunMetrics(MetricsRegistry* registry) : registry_(registry) {
  // There from the first scrape on, so that a rate sees the first step and the first failure.
  for (const char* phase : {"wait_for_samples", "train"}) StepSeconds(registry_, phase);
  Tokens(registry_);
  CheckpointSeconds(registry_);
  AllreduceSeconds(registry_);
  for (const char* outcome : {"committed", "refused"})
    registry_->Counter("rlhf_learner_steps_total", "Optimizer steps, by outcome.", {{"outcome", outcome}});
  registry_->Counter("rlhf_checkpoint_failures_total", "Checkpoints that did not become durable.");
  registry_->Gauge("rlhf_learner_group_size", "Ranks of the group this process is in; 0 without one.");
  registry_->Gauge("rlhf_learner_group_epoch", "Epoch of that group.");
  registry_->OnCollect([this] {
    absl::MutexLock lock(&mu_);
    if (absl::Now() - left_ > kKeptAfterEnd) Drop();
  });
}

void RunMetrics::Joined(const v1::GroupAssignment& group) {
  registry_->Gauge("rlhf_learner_group_size", "").Set(group.world_size());
  registry_->Gauge("rlhf_learner_group_epoch", "").Set(static_cast<double>(group.epoch()));
  const std::string project = group.spec().project().empty() ? "default" : group.spec().project();
  MetricsRegistry::Labels labels = {{"project", project}, {"rlhf_job", group.spec().name()}};
  absl::MutexLock lock(&mu_);
  left_ = absl::InfiniteFuture();
  if (group.rank() != 0) labels.clear();
  if (labels == job_) return;
  Drop();
  job_ = std::move(labels);
}

void RunMetrics::Left() {
  registry_->Gauge("rlhf_learner_group_size", "").Set(0);
  absl::MutexLock lock(&mu_);
  left_ = absl::Now();
}

void RunMetrics::Drop() {
  if (job_.empty()) return;
  for (const char* name : kJobSeries) registry_->Remove(name, job_);
  job_.clear();
}

void RunMetrics::SetOfJob(const std::string& name, const std::string& help, double value,
                          const MetricsRegistry::Labels& more) {
  MetricsRegistry::Labels labels = job_;
  labels.insert(more.begin(), more.end());
  registry_->Gauge(name, help, labels).Set(value);
}

void RunMetrics::Committed(const std::map<std::string, double>& values) {
  registry_->Counter("rlhf_learner_steps_total", "", {{"outcome", "committed"}}).Increment();
  const double wait = ValueOr(values, "seconds/wait_for_samples", 0), train = ValueOr(values, "seconds/train", 0);
  if (train > 0) {
    StepSeconds(registry_, "wait_for_samples").Observe(wait);
    StepSeconds(registry_, "train").Observe(train);
  }
  absl::MutexLock lock(&mu_);
  if (job_.empty()) return;
  const double tokens = ValueOr(values, "tokens", 0);
  if (tokens > 0) Tokens(registry_).Increment(tokens);
  for (const NamedValue& value : kOfStep) {
    if (const auto found = values.find(value.key); found != values.end())
      SetOfJob(value.name, value.help, found->second);
  }
  for (const auto& [key, value] : values) {
    if (key.rfind("loss", 0) == 0)
      SetOfJob("rlhf_learner_loss", "Newest step's loss.", value, {{"kind", key == "loss" ? "total" : key.substr(5)}});
  }
  if (values.count("gold/mean") > 0) {
    SetOfJob("rlhf_learner_gold_gap", "Mean score minus mean gold score: what is learnt that is not wanted.",
             ValueOr(values, "reward/mean", 0) - ValueOr(values, "gold/mean", 0));
  }
  if (wait + train > 0) {
    SetOfJob("rlhf_learner_wait_for_samples_ratio", "Share of the newest step spent waiting for samples.",
             wait / (wait + train));
  }
}

void RunMetrics::Refused() {
  registry_->Counter("rlhf_learner_steps_total", "", {{"outcome", "refused"}}).Increment();
}

void RunMetrics::Checkpointed(absl::Duration took, bool durable) {
  if (!durable) {
    registry_->Counter("rlhf_checkpoint_failures_total", "").Increment();
    return;
  }
  CheckpointSeconds(registry_).Observe(absl::ToDoubleSeconds(took));
  absl::MutexLock lock(&mu_);
  SetOfJob("rlhf_checkpoint_last_success_timestamp_seconds", "When the newest checkpoint became durable.",
           absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
}

void RunMetrics::AllReduced(absl::Duration took) {
  AllreduceSeconds(registry_).Observe(absl::ToDoubleSeconds(took));
}

}  // namespace rlhf::learner
