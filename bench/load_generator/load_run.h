// One run: a coordinator, a job, a fleet without models, a measured window, and a check of the ledger at the end.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/load_generator/limits.h"
#include "bench/load_generator/options.h"
#include "bench/load_generator/recorder.h"

namespace rlhf::bench {

struct LoadResult {
  double window_seconds = 0;
  double leases_per_second = 0, samples_per_second = 0;  // samples leased, samples accepted
  std::map<std::string, Recorder::Summary> calls;
  std::map<std::string, int64_t> failures;
  double coordinator_cores = 0, generator_cores = 0;
  double resident_mb_begin = 0, resident_mb_end = 0, peak_mb = 0;
  // The coordinator's resident memory through the window, at even distances; and the slope of a line through it. What
  // is bounded ends with a slope near 0 (the window must be many steps long).
  std::vector<double> resident_mb;
  double resident_mb_per_minute = 0;
  double payload_mb_per_second = 0;  // what the data folder grew by
  int64_t steps = 0, issued = 0, trained = 0;
  std::vector<std::string> violations;  // of the ledger, recounted from rows and payloads
  DiskLimits disk;                      // with options.limits
  double refused_submits_per_second = 0;
};

absl::StatusOr<LoadResult> RunLoad(const LoadOptions& options);
std::string ToJson(const LoadOptions& options, const LoadResult& result);

}  // namespace rlhf::bench
