// How much one job may ask for at once: of the coordinator's memory and of one turn of its loop, of a learner's memory.
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

#include "coordinator/jobs/spec_checker.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// A step is handed out, trained, refused and cancelled as one, in one transaction.
inline constexpr int64_t kMostSamplesAStep = 262'144;
// Rows of max_policy_lag + 1 steps are in memory.
inline constexpr int64_t kMostSamplesOfSteps = 4 * kMostSamplesAStep;
// A prompt's samples are issued by a job without training in one turn.
inline constexpr int64_t kMostSamplesPerPrompt = 65'536;
// Of data that a learner takes for one step.
inline constexpr int64_t kMostLinesAStep = 262'144;
inline constexpr int64_t kMostEpochs = 10'000;
// The tasks of a collect job are made and written at once.
inline constexpr int64_t kMostComparisons = 262'144;
inline constexpr int64_t kMostAttempts = 1'000;

// What is too large in the kind's own part, of a job or a stage. In size_spec.cc, as CheckKind's part.
void CheckSizes(SpecChecker& check, const v1::JobSpec& job);
void CheckSizes(SpecChecker& check, const v1::StageSpec& stage);

// The same of a job that was stored before there were these bounds; empty when nothing is too large.
std::string SizeProblems(const v1::JobSpec& job);

}  // namespace rlhf::coordinator
