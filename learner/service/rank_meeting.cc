#include "learner/service/rank_meeting.h"

#include <future>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/tracing.h"
#include "learner/trainable.h"

namespace rlhf::learner {

absl::StatusOr<std::vector<double>> RankMeeting::Sum(size_t count, bool aside,
                                                     const std::function<std::vector<double>()>& tell) {
  const Alone scope(this);
  if (collective_->world_size() == 1) return tell();
  std::future<std::vector<double>> running;
  if (aside) {
    running = std::async(std::launch::async, [&tell, about = CurrentLogContext(), trace = CurrentTrace()] {
      const LogScope about_the_same(about);
      const TraceScope of_the_same(trace);
      return tell();
    });
  }
  std::vector<double> own;
  if (!aside) own = tell();
  while (true) {
    if (running.valid() && running.wait_for(absl::ToChronoNanoseconds(every_)) == std::future_status::ready)
      own = running.get();
    std::vector<double> sums = own;
    sums.resize(count);
    sums.push_back(running.valid() ? 1 : 0);
    if (const absl::Status met = SumOverRanks(&sums, device_, collective_); !met.ok()) {
      if (running.valid()) running.wait();
      return met;
    }
    if (sums.back() > 0) continue;
    sums.pop_back();
    return sums;
  }
}

absl::Status RankMeeting::Together(const std::function<absl::Status()>& work, absl::Status* outcome) {
  return Sum(0, /*aside=*/true,
             [&] {
               *outcome = work();
               return std::vector<double>();
             })
      .status();
}

absl::Status RankMeeting::ByRankZero(const std::string& what, const std::function<absl::Status()>& call) {
  absl::Status told;
  const bool tells = collective_->rank() == 0;
  RLHF_ASSIGN_OR_RETURN(const std::vector<double> failed, Sum(1, tells, [&] {
                          if (tells) told = call();
                          return std::vector<double>{told.ok() ? 0.0 : 1.0};
                        }));
  RLHF_RETURN_IF_ERROR(told);
  return failed[0] > 0 ? absl::AbortedError(absl::StrCat("rank 0 could not ", what)) : absl::OkStatus();
}

}  // namespace rlhf::learner
