// The result of an evaluation: rates by category, component and slice, with 95 % intervals.
#pragma once

#include <map>
#include <set>
#include <string>

#include "common/intervals.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// Of samples that come one by one, and are not kept. For every category C (and "" for all) and component K: "C.K", the
// mean; for every tag: "C.K{tag=value}". Besides, from the components of these kinds:
//   known.accuracy (exact_answer), known.needless_abstention (abstention), unknown.hallucination (neither an abstention
//   nor the exact answer), unknown.abstention, action.over_claim (action_claim).
// Intervals are MeanTally's: Wilson's of 0 and 1, else a bootstrap. Not thread-safe.
class EvaluationTally {
 public:
  explicit EvaluationTally(const v1::ScorerSpec& graders);
  void Add(const v1::Sample& sample);
  std::map<std::string, v1::Metric> Metrics() const;

 private:
  struct Values {
    MeanTally all;
    bool unit = true;
    void Add(double value, bool is_unit);
  };
  std::string exact_, abstention_, claim_;  // components' names; empty where there is none of the kind
  std::set<std::string> units_;             // whose values are 0 to 1
  std::map<std::string, Values> values_;
};

}  // namespace rlhf::coordinator
