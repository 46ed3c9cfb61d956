#include "coordinator/scheduling/weight_fan_out.h"

#include <algorithm>

namespace rlhf::coordinator {

void WeightFanOut::Begin() {
  members_.clear();
  index_.clear();
  full_ = 0;
  from_learner_ = 0;
}

std::vector<std::string> WeightFanOut::SourcesOf(const std::string& worker, const std::string& address) {
  if (degree_ <= 0) return {};
  const auto [known, joins] = index_.try_emplace(worker, members_.size());
  if (joins) {
    Member member = {.address = address};
    if (from_learner_ >= degree_) {
      while (full_ < members_.size() && !HasRoom(members_[full_])) ++full_;
      if (full_ < members_.size()) member.parent = static_cast<int>(full_);
    }
    ++(member.parent == kLearner ? from_learner_ : members_[full_].below);
    members_.push_back(std::move(member));
  }
  std::vector<std::string> sources;
  for (int at = members_[known->second].parent; at != kLearner && sources.size() < kMostSources;) {
    const Member& source = members_[static_cast<size_t>(at)];
    if (!source.gone) sources.push_back(source.address);
    at = source.parent;
  }
  return sources;
}

void WeightFanOut::Leave(const std::string& worker) {
  const auto known = index_.find(worker);
  if (known == index_.end()) return;
  Member& member = members_[known->second];
  member.gone = true;
  index_.erase(known);
  if (member.parent == kLearner) {
    --from_learner_;
    return;
  }
  const auto parent = static_cast<size_t>(member.parent);
  --members_[parent].below;
  full_ = std::min(full_, parent);
}

}  // namespace rlhf::coordinator
