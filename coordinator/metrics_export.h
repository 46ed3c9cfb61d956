// The coordinator's state as metrics: refreshed on the loop whenever somebody scrapes.
//
// Job-scoped series carry `project` and `rlhf_job`: active jobs only, at most 200 (the rest share `_overflow`), removed
// 15 minutes after the job's end. Owned by a shared_ptr: a scrape that waits for the loop keeps it.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/metrics.h"
#include "coordinator/event_loop.h"
#include "coordinator/fleet.h"
#include "coordinator/jobs.h"
#include "coordinator/oversight.h"
#include "coordinator/sampling.h"

namespace rlhf::coordinator {

struct MetricsSources {
  EventLoop* loop = nullptr;
  Jobs* jobs = nullptr;
  Sampling* sampling = nullptr;
  Fleet* fleet = nullptr;
  Oversight* oversight = nullptr;
  EventLog* events = nullptr;
};

class MetricsExport : public std::enable_shared_from_this<MetricsExport> {
 public:
  static std::shared_ptr<MetricsExport> Make(const MetricsSources& sources, MetricsRegistry* metrics);
  // Refreshes on each collection, waiting at most 2 s for the loop. After Stop, collections use what was last known.
  void Attach();
  void Stop();
  void Refresh();  // on the loop

 private:
  using JobLabels = std::pair<std::string, std::string>;  // project, name
  struct JobSeries {
    std::vector<int64_t> finished;  // counts per outcome that were added to the counter already
    int64_t last_sequence = -1;
    absl::Time last_progress;
  };

  MetricsExport(const MetricsSources& sources, MetricsRegistry* metrics);
  void RefreshJobs();
  JobLabels RefreshJob(const v1::Job& job, std::map<JobLabels, v1::LedgerCounts>* samples,
                       std::map<JobLabels, double>* progress);
  void ExportSlices(const v1::Job& job);
  void RefreshWorkers();
  void RefreshOversight();
  // Sets every series of a family that was ever set and is not in `values` to 0.
  void SetAll(const std::string& name, const std::string& help,
              const std::map<MetricsRegistry::Labels, double>& values);

  const MetricsSources sources_;
  MetricsRegistry* const metrics_;
  const absl::Time started_;
  std::shared_ptr<std::atomic<bool>> stopped_;
  std::map<std::string, std::set<MetricsRegistry::Labels>> known_;
  std::map<std::string, JobSeries> jobs_;       // by id, of those that had not ended at the last scrape
  std::map<JobLabels, absl::Duration> labels_;  // names in use, and when they were last active
  std::set<std::string> waits_observed_;
  int64_t newest_ = 0;  // job that a scrape has seen: see Jobs::Visit
};

}  // namespace rlhf::coordinator
