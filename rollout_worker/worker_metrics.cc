#include "rollout_worker/worker_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

namespace rlhf::rollout {
namespace {

// Leases that were revoked before their first token leave an entry behind; beyond this the oldest go.
constexpr size_t kMostAwaited = 20'000;

const char* ReasonOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::END_OF_TEXT:
      return "end_of_text";
    case v1::STOP_TEXT:
      return "stop_text";
    case v1::MAX_TOKENS:
      return "max_tokens";
    default:
      return "other";
  }
}

prometheus::Histogram& TimeToFirstToken(MetricsRegistry* registry) {
  return registry->Histogram("rlhf_rollout_time_to_first_token_seconds",
                             "Time from taking up a sample's lease to its first token, waiting for a slot included.",
                             {0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60});
}

prometheus::Histogram& InterToken(MetricsRegistry* registry) {
  return registry->Histogram("rlhf_rollout_inter_token_seconds",
                             "Time of a decoding step: what a running sequence waits a token.",
                             {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5});
}

// load: a model from its artifact. fetch: from asking for the manifest until every tensor was verified. wait: fetched
// ahead, until the engine could change. apply: into the model. total: from the first of these to the end of the last.
prometheus::Histogram& WeightSync(MetricsRegistry* registry, const char* phase) {
  return registry->Histogram("rlhf_weight_sync_seconds", "Time of a change of weights, by phase.",
                             {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120}, {{"phase", phase}});
}

prometheus::Counter& PromptTokens(MetricsRegistry* registry) {
  return registry->Counter("rlhf_rollout_prompt_tokens_total", "Prompt tokens computed.");
}

prometheus::Counter& PrefixHits(MetricsRegistry* registry) {
  return registry->Counter("rlhf_rollout_prefix_hits_total", "Prompts whose beginning another prompt had computed.");
}

prometheus::Counter& PrefixTokens(MetricsRegistry* registry) {
  return registry->Counter("rlhf_rollout_prefix_tokens_total", "Prompt tokens that were not computed again.");
}

prometheus::Counter& GenerationTokens(MetricsRegistry* registry) {
  return registry->Counter("rlhf_rollout_generation_tokens_total", "Tokens generated.");
}

prometheus::Counter& WeightBytes(MetricsRegistry* registry) {
  return registry->Counter("rlhf_weight_sync_bytes_total", "Bytes of weights received.");
}

prometheus::Counter& RelayedWeightBytes(MetricsRegistry* registry) {
  return registry->Counter("rlhf_weight_sync_relayed_bytes_total",
                           "Bytes of weights received from other rollout workers.");
}

prometheus::Counter& MappedWeightBytes(MetricsRegistry* registry) {
  return registry->Counter("rlhf_weight_sync_mapped_bytes_total", "Bytes of weights taken from this host's memory.");
}

prometheus::Counter& NotMapped(MetricsRegistry* registry) {
  return registry->Counter("rlhf_weight_sync_not_mapped_total",
                           "Versions that this host's memory should have had, and that were received instead.");
}

}  // namespace

WorkerMetrics::WorkerMetrics(MetricsRegistry* registry) : registry_(registry) {
  // There from the first scrape on, so that a rate sees the first sample.
  TimeToFirstToken(registry_);
  InterToken(registry_);
  for (const char* phase : {"load", "fetch", "wait", "apply", "total"}) WeightSync(registry_, phase);
  PromptTokens(registry_);
  PrefixHits(registry_);
  PrefixTokens(registry_);
  GenerationTokens(registry_);
  WeightBytes(registry_);
  RelayedWeightBytes(registry_);
  MappedWeightBytes(registry_);
  NotMapped(registry_);
  for (const char* reason : {"end_of_text", "stop_text", "max_tokens"})
    registry_->Counter("rlhf_rollout_finished_total", "Samples generated, by how they ended.", {{"reason", reason}});
}

WorkerMetrics::Key WorkerMetrics::KeyOf(const v1::SampleId& id, int attempt) {
  return {id.job_id(), id.step(), id.ordinal(), id.index(), attempt};
}

void WorkerMetrics::Accepted(const v1::PromptLease& lease, absl::Time now) {
  for (const auto& sample : lease.samples()) {
    if (before_first_token_.size() >= kMostAwaited) before_first_token_.erase(before_first_token_.begin());
    before_first_token_[{lease.job_id(), lease.step(), lease.ordinal(), sample.index(), sample.attempt()}] = now;
  }
}

void WorkerMetrics::FirstToken(const Key& key, absl::Time now) {
  const auto awaited = before_first_token_.find(key);
  if (awaited == before_first_token_.end()) return;
  TimeToFirstToken(registry_).Observe(absl::ToDoubleSeconds(now - awaited->second));
  before_first_token_.erase(awaited);
}

void WorkerMetrics::Stepped(absl::Duration took, const std::vector<v1::LeaseProgress>& progress, absl::Time now) {
  InterToken(registry_).Observe(absl::ToDoubleSeconds(took));
  if (before_first_token_.empty()) return;
  for (const v1::LeaseProgress& lease : progress) {
    if (lease.tokens_done() > 0) FirstToken(KeyOf(lease.id(), lease.attempt()), now);
  }
}

void WorkerMetrics::Finished(const std::vector<v1::Sample>& samples, absl::Time now) {
  for (const v1::Sample& sample : samples) {
    FirstToken(KeyOf(sample.id(), sample.attempt()), now);
    registry_->Counter("rlhf_rollout_finished_total", "", {{"reason", ReasonOf(sample.finish_reason())}}).Increment();
    // Jobs that do not train number their samples' step 0.
    if (sample.id().step() > 0) {
      registry_->Gauge("rlhf_rollout_policy_lag", "Steps that the newest sample's policy is behind its step's.")
          .Set(static_cast<double>(sample.id().step() - 1 - sample.version_low().step()));
    }
  }
}

void WorkerMetrics::Mirror(const Engine& engine, const PolicyLoader::Counters& loaded) {
  const auto set = [this](const char* name, const char* help, double value) {
    registry_->Gauge(name, help).Set(value);
  };
  const auto count = [](prometheus::Counter& counter, int64_t by) {
    if (by > 0) counter.Increment(static_cast<double>(by));
  };
  set("rlhf_rollout_requests_running", "Sequences being generated.", engine.running());
  set("rlhf_rollout_requests_waiting", "Samples leased and waiting for a slot.", engine.waiting());
  set("rlhf_rollout_kv_cache_usage_ratio", "Share of the cache's positions that admitted sequences reserve.",
      engine.kv_cache_usage());
  set("rlhf_rollout_policy_version", "Step of the policy version being served.",
      static_cast<double>(engine.version().step()));
  if (loaded.loads != seen_loaded_.loads) seen_tokens_ = {};
  const Engine::Counters& tokens = engine.counters();
  count(PromptTokens(registry_), tokens.prompt_tokens - seen_tokens_.prompt_tokens);
  count(PrefixHits(registry_), tokens.prefix_hits - seen_tokens_.prefix_hits);
  count(PrefixTokens(registry_), tokens.prefix_tokens - seen_tokens_.prefix_tokens);
  count(GenerationTokens(registry_), tokens.generated_tokens - seen_tokens_.generated_tokens);
  count(WeightBytes(registry_), loaded.bytes - seen_loaded_.bytes);
  count(RelayedWeightBytes(registry_), loaded.bytes_from_workers - seen_loaded_.bytes_from_workers);
  count(MappedWeightBytes(registry_), loaded.bytes_mapped - seen_loaded_.bytes_mapped);
  count(NotMapped(registry_), loaded.not_mapped - seen_loaded_.not_mapped);
  seen_tokens_ = tokens;
  seen_loaded_ = loaded;
}

void WorkerMetrics::Changed(const PolicyLoader::Change& change) {
  const auto observe = [this](const char* phase, const std::optional<absl::Duration>& took) {
    if (took.has_value()) WeightSync(registry_, phase).Observe(absl::ToDoubleSeconds(*took));
  };
  observe("load", change.load);
  observe("fetch", change.fetch);
  observe("wait", change.wait);
  observe("apply", change.apply);
  observe("total", change.total);
}

}  // namespace rlhf::rollout
