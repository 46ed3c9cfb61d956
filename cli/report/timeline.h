// Who of the fleet was busy when with a job, as a Chrome trace (chrome://tracing, https://ui.perfetto.dev).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rlhf/v1/job_service.pb.h"

namespace rlhf::cli {

// A job without stages, or a stage. Of samples only the rows are read.
struct TimelineJob {
  v1::Job job;
  std::vector<v1::MetricPoint> points;  // in the order in which they were committed
  std::vector<v1::SampleRow> rows;
};

// Of the time from a learner's first step to its last, over all jobs of the timeline.
struct LearnerShare {
  int64_t steps = 0;  // trained ones whose phases are known; steps that were trained again count again
  double seconds = 0;
  double idle = 0;     // waited for samples
  double update = 0;   // trained
  double publish = 0;  // digests, staging of weights, the commit, until the next step was asked for
};
struct Timeline {
  std::string chrome_json;  // JSON object format: {"traceEvents": [...]}; times in µs since the first event
  LearnerShare learner;
  int64_t leases = 0, scorings = 0;  // samples whose times are known
};

// Pure. Spans: for each rollout worker its leases, for each reward server its scorings, both in as many lanes as
// overlap, under a lane that says busy or idle; for the learner wait, update and commit of each step; for each job its
// life.
Timeline MakeTimeline(const std::vector<TimelineJob>& jobs);

}  // namespace rlhf::cli
