// A job's specification: defaults (those stated in job.proto), validation, and the references in it. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

// More problems than these are not told.
inline constexpr size_t kMostProblems = 100;
// Entries of all lists in a specification together.
inline constexpr int kMostEntries = 10'000;
// Why a specification is too large to be looked at any further; empty: it is not. Takes time by its size: of what comes
// from outside it is asked before the loop has it.
std::vector<v1::SpecProblem> TooLarge(const v1::JobSpec& spec);
// Fills in every default and returns what is wrong, each with its field's path, what was expected and what was found.
// Of one that is TooLarge, that alone.
std::vector<v1::SpecProblem> CompleteSpec(v1::JobSpec* spec);

// A model or data reference inside a specification.
struct Reference {
  std::string field;   // "ppo.policy"
  std::string* value;  // into the specification
  bool model = false;  // else data
};
// All that are not empty. A pipeline's are those of its stages ("pipeline.stages[2].sft.data").
std::vector<Reference> ReferencesOf(v1::JobSpec* spec);

// "sft", "ppo", …; empty when none is set.
std::string KindOf(const v1::JobSpec& spec);
// A stage as a job of its own. References to other stages are as written. Later rounds and repeats have names and seeds
// of their own.
v1::JobSpec SpecOfStage(const v1::JobSpec& pipeline, const v1::StageSpec& stage, int round = 0, int repeat = 0);
// The artifact a finished job of this kind is referred to by: "model", "samples" or "comparisons".
std::string MainArtifact(const v1::JobSpec& spec);
// The same for a reference: where SFT data is asked for, a collect job is meant for its "edits".
std::string ArtifactFor(const Reference& reference, const v1::JobSpec& made_by);

std::string JoinProblems(const std::vector<v1::SpecProblem>& problems);

}  // namespace rlhf::coordinator
