#include "coordinator/jobs/rounds.h"

#include <algorithm>
#include <utility>

namespace rlhf::coordinator {

int Rounds(const v1::PipelineSpec& pipeline) {
  return std::max(1, pipeline.rounds());
}

std::vector<Place> PlacesUpTo(const v1::PipelineSpec& pipeline, int round) {
  std::vector<Place> places;
  int first = 0;
  for (int i = 0; i < pipeline.stages_size(); ++i) {
    if (pipeline.stages(i).name() == pipeline.repeat_from()) first = i;
  }
  for (int i = 0; i < first; ++i) places.push_back({&pipeline.stages(i), 0});
  for (int r = 1; r <= round; ++r) {
    for (int i = first; i < pipeline.stages_size(); ++i) {
      if (r >= pipeline.stages(i).from_round()) places.push_back({&pipeline.stages(i), r});
    }
  }
  return places;
}

int64_t TotalStages(const v1::PipelineSpec& pipeline) {
  return static_cast<int64_t>(PlacesUpTo(pipeline, Rounds(pipeline)).size());
}

int AttemptOf(const v1::Job& pipeline, const std::vector<v1::Job>& stages, int round) {
  if (round == 0) return 0;
  if (round == pipeline.round()) return pipeline.repeat();
  int last = 0;
  for (const v1::Job& stage : stages) {
    if (stage.round() == round) last = std::max(last, stage.repeat());
  }
  return last;
}

const v1::Job* FindStage(const std::vector<v1::Job>& stages, const std::string& name, const Attempt& attempt) {
  for (const v1::Job& stage : stages) {
    // Stages of a pipeline from before there were rounds are of round 0.
    const bool same_round = stage.round() == attempt.round || (stage.round() == 0 && attempt.round == 1);
    if (stage.stage() == name && same_round && stage.repeat() == attempt.repeat) return &stage;
  }
  return nullptr;
}

const v1::Job* PreviousAttempt(const std::vector<v1::Job>& stages, const std::string& name, const Attempt& attempt) {
  const v1::Job* newest = nullptr;
  for (const v1::Job& stage : stages) {
    const auto place = std::pair(stage.round(), stage.repeat());
    if (stage.stage() != name || stage.state() != v1::SUCCEEDED || place >= std::pair(attempt.round, attempt.repeat))
      continue;
    if (newest == nullptr || place > std::pair(newest->round(), newest->repeat())) newest = &stage;
  }
  return newest;
}

}  // namespace rlhf::coordinator
