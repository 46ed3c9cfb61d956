// An evaluation measured against an earlier one of the same suite, and the calibration of stated confidence: of samples
// that come one by one, and are not kept. Not thread-safe.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/status/statusor.h"
#include "artifact/dataset.h"
#include "common/rounded_sum.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/job.pb.h"

namespace rlhf::coordinator {

// Of prompts that both answered:
//   win_rate, win_rate{SLICE}: an answer with the higher total of the judge wins, equal ones (but for rounding) count
//     one half;
//   score_change, score_change{SLICE}: mean total minus that of the other policy's answers;
//   length_change{SLICE}: the same of response texts, in bytes;
//   refusal_change{SLICE}: the same of the abstention grader, where both evaluations have one;
//   disparity, disparity_before, disparity_rise: the largest gap in mean total between two slices of one tag, now,
//   then, and how much it grew. Slices by `category` count only where the evaluation declares them.
// 95 % intervals over prompts (common/intervals.h): of win rates ClusteredMean's, those of the disparities simultaneous
// over their slices, of all but win rates by percentile bootstrap; none where a slice has fewer than 5 prompts. Seeded:
// the same samples give the same numbers; no interval for a change that is the same for every prompt. The judge's
// components are looked up by name among what both evaluations' graders recorded. A bootstrap draws from what was
// measured of each prompt: that is kept, some hundred bytes a prompt, and no text.
class EvaluationComparison {
 public:
  explicit EvaluationComparison(const v1::EvaluateSpec& spec) : spec_(spec) {}
  // A sample of the earlier evaluation; all of them before the first of this one. A prompt's first one counts.
  void AddBefore(const artifact::SampleRecord& sample);
  // FailedPrecondition: a component of the judge was not recorded.
  absl::Status Add(const v1::Sample& sample);
  // FailedPrecondition when no prompt is in both.
  absl::StatusOr<std::map<std::string, v1::Metric>> Metrics() const;

 private:
  struct Before {
    absl::StatusOr<RoundedSum> total;
    std::vector<std::optional<double>> refusals;  // by abstention graders, in their order
    double length = 0;
    size_t prompt = 0;
  };
  struct Slice {
    std::string name, tag;  // "{tag=value}"
  };
  struct Pair {
    std::vector<int> slices;
    double now = 0, before = 0, win = 0.5, length_change = 0;
    std::optional<double> refusal_change;
    size_t prompt = 0;
  };
  const v1::ScorerSpec& judge() const { return spec_.has_judge() ? spec_.judge() : spec_.graders(); }
  bool Declares(const std::string& tag) const;
  std::vector<int> SlicesOf(const v1::Prompt& prompt);
  std::vector<std::optional<double>> RefusalsIn(const std::map<std::string, double>& components) const;
  // Mean totals by slice; none of a slice that the pairs have nothing of.
  using SliceMeans = std::vector<std::optional<double>>;
  SliceMeans MeansOf(const std::vector<Pair>& pairs, double Pair::*total) const;
  // b has what a has.
  static SliceMeans Minus(SliceMeans a, const SliceMeans& b);
  // Whether gaps between slices of its tag count.
  bool Counts(const Slice& slice) const;
  size_t SmallestSlice() const;  // prompts of it
  // Between two slices of one tag.
  double LargestGap(const SliceMeans& by_slice) const;
  void AddDisparities(int replicates, std::map<std::string, v1::Metric>* metrics) const;

  const v1::EvaluateSpec spec_;
  std::map<absl::uint128, Before> before_;  // by prompt
  std::vector<Slice> slices_;
  std::map<std::string, int> slice_ids_;  // by name
  std::vector<Pair> pairs_;
};

// Of answers that state a confidence (the pattern's first group) and were graded by an exact_answer component:
// calibration.ece over ten bins, calibration.stated (how many state one), calibration/BIN and
// calibration.confidence/BIN. Each answer's unit is its own: per cent where it is above 1 or "%" or "percent" follows,
// else 0 to 1; a bare "1" is what most of the others are, and certainty where that is undecided.
class StatedCalibration {
 public:
  // InvalidArgument for a bad pattern.
  static absl::StatusOr<std::unique_ptr<StatedCalibration>> Make(const v1::EvaluateSpec& spec);
  virtual ~StatedCalibration() = default;
  virtual void Add(const v1::Sample& sample) = 0;
  virtual std::map<std::string, v1::Metric> Metrics() const = 0;
};

}  // namespace rlhf::coordinator
