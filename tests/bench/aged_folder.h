// A coordinator's folder as a year of work leaves it, written through the store: jobs that have ended, with their
// events and what retention leaves of their samples, artifacts under many names, gates, tokens, judgements and an audit
// log.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace rlhf::bench {

struct AgedOptions {
  int jobs = 20'000;  // at least 8; stages of pipelines among them
  int events_a_job = 20;
  int samples_a_job = 10;        // rows; their payloads were freed
  int long_job_steps = 100'000;  // committed by one more job, of PPO, which has ended too
  int artifacts = 300;
  int aliases = 5'000;
  int gates = 2'000;
  int tokens = 500;
  int judgements = 200'000;  // tasks, each with an answer, of collect jobs
  int audit_records = 2'000'000;
};
// Into `dir`/data and `dir`/artifacts. The long job is named "long".
absl::Status WriteAgedFolder(const std::string& dir, const AgedOptions& options);

}  // namespace rlhf::bench
