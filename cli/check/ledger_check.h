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
  bool archived = false;             // superseded: its place was taken by a new attempt
  std::string line;                  // artifact::BatchLine of its payload; empty before it is generated
  v1::PolicyVersion oldest, newest;  // by its payload; that generated a token of it
};
// A sample as it was listed; `archived`: one with the same id came before it.
CheckedSample CheckedSampleOf(const v1::SampleView& view, bool archived);

struct LedgerFacts {
  v1::Job job;                           // read before the rest
  int64_t step_after = 0;                // its committed step, read after the rest
  uint64_t lineage_after = 0;            // its version's lineage, read after the rest
  std::vector<v1::CommittedStep> steps;  // in order
  std::vector<CheckedSample> samples;    // in order of issue, each followed by what it superseded
};

// The coordinator's own records. PPO: no sample lost, trained once, by versions within the lag bound whose weights are
// those that were committed; steps without a gap; batches that are what was committed; a sample that was given up as
// stale was. SFT and reward models: finished where their steps end. All jobs: identities, and a reason for each
// failure.
std::vector<std::string> CheckLedger(const LedgerFacts& facts);

// How much there was to compare: a check that compared nothing shows nothing.
struct Compared {
  int64_t steps = 0;         // committed ones of PPO, the last ones of SFT and reward models, with a line of every rank
  int64_t rank_lines = 0;    // "trained", of all ranks and epochs
  int64_t samples = 0;       // generated ones of the job
  int64_t samples_seen = 0;  // of these: whose acknowledgement a rollout worker noted
};
// The records against what learners and rollout workers saw: a line of every rank for each committed step, equal
// digests of weights, optimizer state and metrics on all ranks, steps in order, the same batch whenever a step was
// trained, no acknowledged commit and no accepted sample missing. Adds to *compared.
std::vector<std::string> CheckEvidence(const LedgerFacts& facts, const Evidence& evidence, Compared* compared);

}  // namespace rlhf::cli
