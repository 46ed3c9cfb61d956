#include "coordinator/scheduling/fair_share.h"

#include <map>
#include <tuple>
#include <utility>

namespace rlhf::coordinator {
namespace {

struct Usage {
  ShareRule rule;
  int held = 0;
  bool full() const { return rule.limit > 0 && held >= rule.limit; }
  double share() const { return held / rule.weight; }
};

}  // namespace

int Patience::Points(absl::Duration now, bool wants) {
  if (keeps_until_.has_value() && now >= *keeps_until_) {
    keeps_until_.reset();
    wants_since_.reset();
    points_ = 0;
  }
  if (keeps_until_.has_value()) return points_;
  if (!wants) {
    wants_since_.reset();
    return points_ = 0;
  }
  if (!wants_since_.has_value()) wants_since_ = now;
  return points_ = static_cast<int>(absl::FDivDuration(now - *wants_since_, aging_));
}

void Patience::Granted(absl::Duration now) {
  wants_since_ = now;
  if (points_ > 0 && !keeps_until_.has_value()) keeps_until_ = now + aging_;
}

int PickClaim(const std::vector<Claim>& claims, ShareRuleOf rule, int current) {
  std::map<std::pair<std::string, std::string>, Usage> usage;
  const auto add = [&](const std::string& project, const std::string& submitter, int held) {
    const auto [it, fresh] = usage.try_emplace({project, submitter});
    if (fresh) it->second.rule = rule(project, submitter);
    it->second.held += held;
  };
  for (const Claim& claim : claims) {
    add(claim.project, "", claim.held);
    add(claim.project, claim.submitter, claim.held);
  }
  int best = -1;
  std::tuple<int, double, double, int, int> best_rank;
  for (int i = 0; i < static_cast<int>(claims.size()); ++i) {
    const Claim& claim = claims[i];
    const Usage& project = usage.at({claim.project, ""});
    const Usage& submitter = usage.at({claim.project, claim.submitter});
    if (!claim.wants || project.full() || submitter.full()) continue;
    const std::tuple<int, double, double, int, int> rank{-claim.priority, project.share(), submitter.share(),
                                                         claim.held, i == current ? 0 : 1};
    if (best >= 0 && best_rank <= rank) continue;
    best = i;
    best_rank = rank;
  }
  return best;
}

}  // namespace rlhf::coordinator
