#include "learner/service/group_numerics.h"

#include <string>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/known_fields.h"
#include "common/status_util.h"
#include "common/unsuited.h"
#include "learner/service/event_file.h"
#include "learner/trainable.h"

namespace rlhf::learner {
namespace {

constexpr absl::string_view kUnlikeMark = "rlhf/unlike_rank_0";  // on an Unsuited status

}  // namespace

absl::Status CheckSuits(const v1::GroupAssignment& group) {
  RLHF_RETURN_IF_ERROR(CheckKnown(group.spec(), "the job's specification", "this learner"));
  const std::string now = NumericsOf(group.spec(), group.world_size());
  if (!group.numerics().empty() && group.numerics() != now) {
    return UnsuitedError(
        absl::StrCat("deterministic: the job's steps were trained with \"", group.numerics(), "\", this learner has \"",
                     now, "\"; start one of the same version with the same --threads on the same kind of machine"));
  }
  return absl::OkStatus();
}

absl::Status AgreeOnNumerics(const v1::GroupAssignment& group, RankMeeting* meeting) {
  // Once steps are trained, CheckSuits compares with theirs.
  if (!group.spec().deterministic() || group.world_size() == 1 || !group.numerics().empty()) return absl::OkStatus();
  const std::string now = NumericsOf(group.spec(), group.world_size());
  const double ours = Crc32c(now);  // exact
  RLHF_ASSIGN_OR_RETURN(const std::vector<double> first, meeting->Sum(1, /*aside=*/false, [&] {
    return std::vector<double>{group.rank() == 0 ? ours : 0};
  }));
  if (first[0] == ours) return absl::OkStatus();
  absl::Status unlike = UnsuitedError(
      absl::StrCat("deterministic: this learner has \"", now,
                   "\", rank 0 of its group another; start learners of the same version with the same --threads on the "
                   "same kind of machine"));
  unlike.SetPayload(kUnlikeMark, absl::Cord());
  return unlike;
}

bool IsUnlikeRankZero(const absl::Status& status) {
  return status.GetPayload(kUnlikeMark).has_value();
}

}  // namespace rlhf::learner
