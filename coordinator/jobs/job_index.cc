#include "coordinator/jobs/job_index.h"

#include <limits>

#include "common/job_state.h"
#include "coordinator/jobs/spec.h"

namespace rlhf::coordinator {

void JobIndex::Add(const v1::Job* job) {
  const int64_t number = next_++;
  all_.emplace(number, job);
  if (!IsTerminal(job->state())) active_.emplace(number, job);
  numbers_.emplace(job->id(), number);
  by_name_.emplace(job->spec().project(), job->spec().name(), number);
  ++census_[{KindOf(job->spec()), job->state()}];
}

void JobIndex::Remove(const v1::Job& job) {
  const int64_t number = NumberOf(job.id());
  all_.erase(number);
  active_.erase(number);
  numbers_.erase(job.id());
  by_name_.erase({job.spec().project(), job.spec().name(), number});
  --census_[{KindOf(job.spec()), job.state()}];
}

void JobIndex::Moves(const v1::Job& job, v1::JobState to) {
  const std::string kind = KindOf(job.spec());
  --census_[{kind, job.state()}];
  ++census_[{kind, to}];
  if (IsTerminal(to)) active_.erase(NumberOf(job.id()));
}

int64_t JobIndex::NumberOf(const std::string& id) const {
  const auto it = numbers_.find(id);
  return it == numbers_.end() ? 0 : it->second;
}

const v1::Job* JobIndex::Named(const std::string& project, const std::string& name) const {
  auto it = by_name_.upper_bound({project, name, std::numeric_limits<int64_t>::max()});
  if (it == by_name_.begin()) return nullptr;
  --it;
  const auto& [its_project, its_name, number] = *it;
  return its_project == project && its_name == name ? all_.at(number) : nullptr;
}

}  // namespace rlhf::coordinator
