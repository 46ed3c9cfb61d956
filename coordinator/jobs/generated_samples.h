// What a sample or an evaluate job makes of its samples, in one pass over the store: the lines of its data artifact and
// its result's metrics. One page of samples is in memory at a time, however many there are.
#pragma once

#include <map>
#include <string>

#include "absl/status/status.h"
#include "coordinator/sampling.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

struct GeneratedSamples {
  // The first that is not OK ended the pass.
  absl::Status read;      // DataLoss: a scored sample is missing or damaged; else the store's
  absl::Status written;   // of the lines
  absl::Status measured;  // of an evaluation
  std::map<std::string, v1::Metric> metrics;
};

// How a sample or an evaluate job samples.
const v1::SamplingParams& SamplingOf(const v1::JobSpec& spec);

// A line of samples.jsonl, which artifact/dataset.h reads.
std::string SampleLine(const v1::Sample& sample);

// The job's scored samples, `expected` of them, in issue order, into `file`. `against`: the folder of the artifact that
// an evaluation is compared with, or empty. Blocks; any thread.
GeneratedSamples WriteGeneratedSamples(const Sampling& sampling, const std::string& job_id, const v1::JobSpec& spec,
                                       int64_t expected, const std::string& against, const std::string& file);

}  // namespace rlhf::coordinator
