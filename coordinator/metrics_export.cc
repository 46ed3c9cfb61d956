#include "coordinator/metrics_export.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include "absl/strings/ascii.h"
#include "absl/synchronization/notification.h"
#include "common/job_state.h"
#include "coordinator/slice_metrics.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kMaxJobNames = 200;
constexpr const char kOverflow[] = "_overflow";  // project and name of the rest
constexpr absl::Duration kKeptAfterEnd = absl::Minutes(15);
constexpr int kEventsAPage = 500;

struct NamedCount {
  const char* name;
  int64_t (v1::LedgerCounts::*count)() const;
};
constexpr NamedCount kStates[] = {
    {"queued", &v1::LedgerCounts::queued},       {"leased", &v1::LedgerCounts::leased},
    {"generated", &v1::LedgerCounts::generated}, {"scored", &v1::LedgerCounts::scored},
    {"assigned", &v1::LedgerCounts::assigned},   {"trained", &v1::LedgerCounts::trained},
    {"delivered", &v1::LedgerCounts::delivered}, {"stale", &v1::LedgerCounts::stale},
    {"failed", &v1::LedgerCounts::failed},       {"cancelled", &v1::LedgerCounts::cancelled}};
constexpr size_t kFirstOutcome = 5;  // from "trained" on, a sample's story is over

MetricsRegistry::Labels GateLabels(v1::GateState state) {
  return {{"state", absl::AsciiStrToLower(v1::GateState_Name(state)).substr(5)}};
}

prometheus::Histogram& QueueWait(MetricsRegistry* metrics) {
  return metrics->Histogram("rlhf_queue_wait_seconds", "Time from a job's submission to its start.",
                            {0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400});
}

prometheus::Counter& SamplesFinished(MetricsRegistry* metrics, const char* outcome) {
  return metrics->Counter("rlhf_samples_finished_total", "Samples whose story is over, by outcome.",
                          {{"outcome", outcome}});
}

// Who waits for people or for its turn, or was told by a person to wait, is not stuck. A pipeline's stages have series
// of their own. What the coordinator itself has paused wants somebody to mend its volume.
bool ShouldProgress(const v1::Job& job) {
  if (job.spec().has_pipeline()) return false;
  return job.state() == v1::PAUSED ? !job.reason_code().empty() : job.state() == v1::RUNNING || IsTerminal(job.state());
}

absl::Time TimeOf(const google::protobuf::Timestamp& at) {
  return absl::FromUnixSeconds(at.seconds()) + absl::Nanoseconds(at.nanos());
}

}  // namespace

MetricsExport::MetricsExport(const MetricsSources& sources, MetricsRegistry* metrics)
    : sources_(sources),
      metrics_(metrics),
      started_(sources.loop->clock().WallNow()),
      stopped_(std::make_shared<std::atomic<bool>>(false)) {
  // Rare events are there with 0 from the first scrape on, so that a rate sees the first of them.
  for (const char* reason : {"no_token", "malformed_token", "unknown_token", "expired_token", "revoked_token", "role",
                             "project", "certificate", "identity", "session"})
    metrics_->Counter("rlhf_auth_failures_total", "Calls refused for want of identity or permission.",
                      {{"reason", reason}});
  metrics_->Counter("rlhf_results_rejected_total", "Samples of workers that were not taken, by reason.",
                    {{"reason", v1::ErrorReason_Name(v1::STALE_ATTEMPT)}});
  for (const char* source : {"rater", "import"})
    metrics_->Counter("rlhf_comparisons_total", "Comparisons taken in, by where they came from.", {{"source", source}});
  for (size_t i = kFirstOutcome; i < std::size(kStates); ++i) SamplesFinished(metrics_, kStates[i].name);
  QueueWait(metrics_);
}

std::shared_ptr<MetricsExport> MetricsExport::Make(const MetricsSources& sources, MetricsRegistry* metrics) {
  return std::shared_ptr<MetricsExport>(new MetricsExport(sources, metrics));
}

void MetricsExport::Attach() {
  metrics_->OnCollect([weak = weak_from_this(), stopped = stopped_, loop = sources_.loop] {
    if (*stopped) return;
    auto refreshed = std::make_shared<absl::Notification>();
    loop->Post([weak, stopped, refreshed] {
      if (const auto self = weak.lock(); self != nullptr && !*stopped) self->Refresh();
      refreshed->Notify();
    });
    // A loop that is busy must not hold up the scrape: old numbers are better than none.
    refreshed->WaitForNotificationWithTimeout(absl::Seconds(2));
  });
}

void MetricsExport::Stop() {
  *stopped_ = true;
}

void MetricsExport::Refresh() {
  RefreshJobs();
  RefreshWorkers();
  RefreshOversight();
}

void MetricsExport::SetAll(const std::string& name, const std::string& help,
                           const std::map<MetricsRegistry::Labels, double>& values) {
  std::set<MetricsRegistry::Labels>& known = known_[name];
  for (const auto& [labels, value] : values) {
    metrics_->Gauge(name, help, labels).Set(value);
    known.insert(labels);
  }
  for (const MetricsRegistry::Labels& labels : known) {
    if (values.count(labels) == 0) metrics_->Gauge(name, help, labels).Set(0);
  }
}

void MetricsExport::RefreshJobs() {
  std::map<MetricsRegistry::Labels, double> jobs;
  for (const auto& [which, count] : sources_.jobs->census()) {
    const auto& [kind, state] = which;
    jobs[{{"kind", kind.empty() ? "none" : kind}, {"state", absl::AsciiStrToLower(v1::JobState_Name(state))}}] +=
        static_cast<double>(count);
  }
  std::map<JobLabels, v1::LedgerCounts> samples;
  std::map<JobLabels, double> progress;
  std::set<std::string> active;
  // A job that has ended is looked at once more, for its last counts and its result, even when it began and ended
  // between two scrapes; what had ended before this process began is not.
  const auto look = [&](const v1::Job& job) {
    const bool over = IsTerminal(job.state());
    if (over && jobs_.count(job.id()) == 0 && TimeOf(job.finished_at()) < started_) return;
    if (!over) active.insert(job.id());
    const JobLabels labels = RefreshJob(job, &samples, &progress);
    if (over && labels.first != kOverflow) ExportSlices(job);
  };
  for (const auto& [id, series] : jobs_) {
    if (const v1::Job* const job = sources_.jobs->Find(id); job != nullptr && IsTerminal(job->state())) look(*job);
  }
  newest_ = sources_.jobs->Visit(newest_, look);
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    if (active.count(it->first) > 0) {
      ++it;
      continue;
    }
    waits_observed_.erase(it->first);
    it = jobs_.erase(it);
  }

  int64_t leased = 0;
  SetAll("rlhf_jobs", "Jobs, by kind and state; stages of pipelines count as jobs.", jobs);
  for (const auto& [labels, counts] : samples) {
    leased += counts.leased();
    for (const NamedCount& state : kStates) {
      metrics_
          ->Gauge("rlhf_samples", "Samples of active jobs, by state.",
                  {{"project", labels.first}, {"rlhf_job", labels.second}, {"state", state.name}})
          .Set(static_cast<double>((counts.*state.count)()));
    }
  }
  auto& expired = metrics_->Counter("rlhf_leases_expired_total",
                                    "Leases of rollout workers that ran out: no heartbeat, or no progress.");
  const double newly_expired = static_cast<double>(sources_.sampling->leases_expired()) - expired.Value();
  if (newly_expired > 0) expired.Increment(newly_expired);
  metrics_->Gauge("rlhf_leases_active", "Samples that a rollout worker holds a lease on.")
      .Set(static_cast<double>(leased));
  for (const auto& [labels, at] : progress) {
    metrics_
        ->Gauge("rlhf_job_last_progress_timestamp_seconds",
                "When the job last finished a step, a state or a batch of samples.",
                {{"project", labels.first}, {"rlhf_job", labels.second}})
        .Set(at);
  }
  const absl::Duration now = sources_.loop->clock().Now();
  for (auto it = labels_.begin(); it != labels_.end();) {
    if (now - it->second < kKeptAfterEnd) {
      ++it;
      continue;
    }
    const MetricsRegistry::Labels labels = {{"project", it->first.first}, {"rlhf_job", it->first.second}};
    metrics_->Remove("rlhf_samples", labels);
    metrics_->Remove("rlhf_job_last_progress_timestamp_seconds", labels);
    metrics_->Remove("rlhf_job_alarm_timestamp_seconds", labels);
    metrics_->Remove("rlhf_slice_reward_mean", labels);
    metrics_->Remove("rlhf_slice_win_rate", labels);
    it = labels_.erase(it);
  }
}

MetricsExport::JobLabels MetricsExport::RefreshJob(const v1::Job& job, std::map<JobLabels, v1::LedgerCounts>* samples,
                                                   std::map<JobLabels, double>* progress) {
  JobLabels labels{job.spec().project(), job.spec().name()};
  if (labels_.count(labels) == 0 && labels_.size() >= kMaxJobNames) labels = {kOverflow, kOverflow};
  labels_[labels] = sources_.loop->clock().Now();

  JobSeries& series = jobs_[job.id()];
  const v1::LedgerCounts counts = sources_.sampling->Counts(job.id());
  const bool first = series.finished.empty();
  series.finished.resize(std::size(kStates));
  v1::LedgerCounts& total = (*samples)[labels];
  total.set_leased(total.leased() + counts.leased());
  total.set_queued(total.queued() + counts.queued());
  total.set_generated(total.generated() + counts.generated());
  total.set_scored(total.scored() + counts.scored());
  total.set_assigned(total.assigned() + counts.assigned());
  total.set_trained(total.trained() + counts.trained());
  total.set_delivered(total.delivered() + counts.delivered());
  total.set_stale(total.stale() + counts.stale());
  total.set_failed(total.failed() + counts.failed());
  total.set_cancelled(total.cancelled() + counts.cancelled());
  for (size_t i = kFirstOutcome; i < std::size(kStates); ++i) {
    const int64_t count = (counts.*kStates[i].count)();
    auto& counter = SamplesFinished(metrics_, kStates[i].name);
    // What was there before this process began is not counted again; a rollback lowers counts, a counter never.
    const bool resumed = first && TimeOf(job.created_at()) < started_;
    if (!resumed && count > series.finished[i]) counter.Increment(static_cast<double>(count - series.finished[i]));
    series.finished[i] = std::max(series.finished[i], count);
  }

  const int64_t newest = sources_.events->LastSequence(job.id());
  if (newest != series.last_sequence) {
    const absl::StatusOr<std::vector<v1::JobEvent>> events =
        sources_.events->Read(job.id(), std::max<int64_t>(series.last_sequence, newest - kEventsAPage), kEventsAPage);
    if (events.ok()) {
      for (const v1::JobEvent& event : *events) {
        series.last_sequence = event.sequence();
        if (event.has_alert()) {
          metrics_
              ->Gauge("rlhf_job_alarm_timestamp_seconds", "When a monitor of the job raised its newest alarm.",
                      {{"project", labels.first}, {"rlhf_job", labels.second}, {"monitor", event.alert().monitor()}})
              .Set(absl::ToDoubleSeconds(TimeOf(event.at()) - absl::UnixEpoch()));
        }
        if (event.has_metrics() || event.has_state() || event.has_ledger())
          series.last_progress = std::max(series.last_progress, TimeOf(event.at()));
      }
    }
  }
  if (!ShouldProgress(job)) {
    metrics_->Remove("rlhf_job_last_progress_timestamp_seconds",
                     {{"project", labels.first}, {"rlhf_job", labels.second}});
    return labels;
  }
  double& latest = (*progress)[labels];
  const absl::Time since = series.last_progress == absl::Time() ? TimeOf(job.created_at()) : series.last_progress;
  latest = std::max(latest, absl::ToDoubleSeconds(since - absl::UnixEpoch()));

  if (job.has_started_at() && TimeOf(job.created_at()) >= started_ && waits_observed_.insert(job.id()).second)
    QueueWait(metrics_).Observe(absl::ToDoubleSeconds(TimeOf(job.started_at()) - TimeOf(job.created_at())));
  return labels;
}

void MetricsExport::ExportSlices(const v1::Job& job) {
  const auto set = [&](const char* name, const char* help, const std::map<std::string, double>& slices) {
    for (const auto& [slice, value] : slices) {
      metrics_
          ->Gauge(name, help, {{"project", job.spec().project()}, {"rlhf_job", job.spec().name()}, {"slice", slice}})
          .Set(value);
    }
  };
  set("rlhf_slice_reward_mean", "An evaluation's mean grade, by slice.", SliceRewardMeans(job));
  set("rlhf_slice_win_rate", "Share of comparisons won, by slice.", SliceWinRates(job));
}

void MetricsExport::RefreshWorkers() {
  std::map<MetricsRegistry::Labels, double> workers;
  for (const v1::Role role : {v1::ROLE_ROLLOUT_WORKER, v1::ROLE_LEARNER, v1::ROLE_REWARD_SERVER}) {
    const std::string name = absl::AsciiStrToLower(v1::Role_Name(role)).substr(5);
    for (const Session* session : sources_.fleet->Sessions(role)) {
      const v1::WorkerState state = session->cordoned   ? v1::CORDONED
                                    : session->draining ? v1::DRAINING
                                                        : session->state;
      workers[{{"role", name}, {"state", absl::AsciiStrToLower(v1::WorkerState_Name(state))}}] += 1;
    }
  }
  SetAll("rlhf_workers", "Processes of the fleet, by role and state.", workers);
}

void MetricsExport::RefreshOversight() {
  metrics_->Gauge("rlhf_service_halted", "1 while an overseer has halted all training.")
      .Set(sources_.oversight->halted() ? 1 : 0);
  const GateSummary summary = sources_.oversight->Summary();
  std::map<MetricsRegistry::Labels, double> gates;
  for (const v1::GateState state : {v1::GATE_WAITING, v1::GATE_APPROVED, v1::GATE_REJECTED, v1::GATE_CONDITIONS_FAILED})
    gates[GateLabels(state)] = 0;
  for (const auto& [state, count] : summary.by_state) gates[GateLabels(state)] = static_cast<double>(count);
  SetAll("rlhf_gates", "Gates, by state.", gates);
  metrics_
      ->Gauge("rlhf_gate_oldest_waiting_seconds",
              "How long the gate that has waited longest has waited; 0 without one.")
      .Set(summary.waiting_since ? absl::ToDoubleSeconds(sources_.loop->clock().WallNow() - *summary.waiting_since)
                                 : 0);
}

}  // namespace rlhf::coordinator
