// Sets of comparisons: what stands in one, and which there are.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "artifact/digest.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// Writes a set's lines and counts what it has. Not thread-safe.
class SetBuilder {
 public:
  // Lines of SFT data from edits and written answers instead of comparisons.
  enum class Kind { kComparisons, kSft };
  // `pair_ratings`: ratings of single answers become comparisons too (PairOfRatings); else they are left out.
  SetBuilder(std::ostream* out, std::set<std::string> excluded_raters, Kind kind = Kind::kComparisons,
             bool pair_ratings = false)
      : out_(out), excluded_(std::move(excluded_raters)), kind_(kind), pair_ratings_(pair_ratings) {}
  void Add(const v1::Comparison& comparison);
  // What is added from now on is another job's: ratings pair up within one job only.
  void NextJob(bool pair_ratings);
  // An earlier set whose lines were written before. Who was left out of it is named as left out of this one too; none
  // of its raters may be excluded or forgotten (PartsOfSet sees to that).
  void Begin(const v1::ComparisonSet& previous);
  // Writes the comparisons that ratings make: `out` must still be open.
  v1::ComparisonSet Finish();

 private:
  std::ostream* const out_;
  std::set<std::string> excluded_;
  const Kind kind_;
  bool pair_ratings_;
  void Write(const v1::Comparison& comparison, const std::string& line);
  void WritePairs();

  artifact::Sha256 content_;
  v1::ComparisonSet set_;
  std::map<std::pair<std::string, std::string>, std::vector<v1::Comparison>> ratings_;  // by rater and prompt
};

// Two ratings of one answer each, by one rater and of one prompt, as a comparison with the ratings of the criteria that
// both have: the answer with the higher sum is better, equal sums are a tie. Nothing when the answers are the same text
// or no criterion is common.
std::optional<v1::Comparison> PairOfRatings(const v1::Comparison& first, const v1::Comparison& second);

// Identifies a judgement by its content: prompt, answers, verdict, rater, ratings. 16 bytes.
std::string ComparisonDigest(const v1::Comparison& comparison);

// The rows of all sets. Loop thread only.
class SetTable {
 public:
  static absl::StatusOr<SetTable> Load(StateStore* store);
  // Numbers the set and adds its row.
  void Add(v1::ComparisonSet* set, WriteBatch* batch);
  std::vector<v1::ComparisonSet> List(const std::string& project, const std::string& name) const;
  // Of several sets with equal lines, the one that a collect job made: its judgements are in the store.
  const v1::ComparisonSet* FindDigest(const std::string& digest) const;
  // Those that have answers of the rater; marks them.
  std::vector<v1::ComparisonSet> Forget(const std::string& rater, WriteBatch* batch);

 private:
  std::map<std::string, v1::ComparisonSet> rows_;  // by key
};

// A stretch of a set that begins with an earlier one: an artifact's lines as they are, or a collect job's judgements
// from the store.
struct SetPart {
  v1::ComparisonSet lines;  // has a digest, or else
  std::string job_id;
};

// What the set of this digest is made of now: its lines as they were published, unless somebody who judged in it was
// forgotten since, or is among `excluded`; then the judgements that the store still has of the collect jobs behind it.
// `is_job` says whether the store still has a collect job's judgements. A frozen or imported set stands as it is, or,
// if somebody in it was forgotten, as the newest version without them. FailedPrecondition when nothing can be made
// without a forgotten rater: then the set has to be frozen again. An artifact that is no set counts as lines of nobody.
absl::StatusOr<std::vector<SetPart>> PartsOfSet(const SetTable& sets, const std::string& digest,
                                                const std::set<std::string>& excluded,
                                                const std::function<bool(const std::string&)>& is_job);

}  // namespace rlhf::coordinator
