// Whether a job's history adds up: what `rlhfctl ledger --check` finds beyond what the coordinator checks itself.
//
// Pure functions of what was read. Every violation is one line for people that names step and sample.
#pragma once

#include <string>
#include <vector>

#include "cli/check/evidence.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {

struct CheckedSample {
  v1::SampleRow row;
  bool archived = false;  // superseded: its place was taken by a new attempt
  std::string line;       // artifact::BatchLine of its payload; empty before it is generated
};
// A sample as it was listed; `archived`: one with the same id came before it.
CheckedSample CheckedSampleOf(const v1::SampleView& view, bool archived);

struct LedgerFacts {
  v1::Job job;                           // read before the rest
  int64_t step_after = 0;                // its committed step, read after the rest
  std::vector<v1::CommittedStep> steps;  // in order
  std::vector<CheckedSample> samples;    // in order of issue, each followed by what it superseded
};

// The coordinator's own records: no sample lost, trained once and within the lag bound, steps without a gap, batches
// that are what was committed. Jobs without training: identities only.
std::vector<std::string> CheckLedger(const LedgerFacts& facts);
// The records against what learners and rollout workers saw: equal digests on all ranks at each commit, steps in order,
// the same batch whenever a step was trained, no acknowledged commit and no accepted sample missing.
std::vector<std::string> CheckEvidence(const LedgerFacts& facts, const Evidence& evidence);

}  // namespace rlhf::cli
