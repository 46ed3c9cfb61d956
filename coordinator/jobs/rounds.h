// A pipeline's rounds: which stage comes where, and which job was its latest attempt. Pure functions.
//
// Stages before `repeat_from` run once and are of round 0; the others run in rounds from 1. A round that a gate sends
// back is attempted again: its repeat grows.
#pragma once

#include <string>
#include <vector>

#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

struct Place {
  const v1::StageSpec* stage;
  int round;
};
struct Attempt {
  int round, repeat;
};

int Rounds(const v1::PipelineSpec& pipeline);
// Stage runs of a pipeline in which every gate opens at once.
int64_t TotalStages(const v1::PipelineSpec& pipeline);
// In order, through the end of a round.
std::vector<Place> PlacesUpTo(const v1::PipelineSpec& pipeline, int round);
// The repeat of a round that counts: the one the pipeline is in, or the last of a round that is over.
int AttemptOf(const v1::Job& pipeline, const std::vector<v1::Job>& stages, int round);
// Null when it has not begun.
const v1::Job* FindStage(const std::vector<v1::Job>& stages, const std::string& name, const Attempt& attempt);
// The newest finished run of a stage before an attempt; null when there is none.
const v1::Job* PreviousAttempt(const std::vector<v1::Job>& stages, const std::string& name, const Attempt& attempt);

}  // namespace rlhf::coordinator
