// Which jobs there are, so that nothing that is done often walks over those that ended long ago: in the order in which
// they came, those that have not ended, by name, and how many of each kind and state. Inside of JobTable, which owns
// the jobs. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "coordinator/jobs.h"

namespace rlhf::coordinator {

class JobIndex {
 public:
  // By number: a job's is greater than those of all that came before it, and is not given twice.
  using Order = std::map<int64_t, const v1::Job*>;

  // The newest. It must stay where it is until Remove; its id, name, project and kind do not change.
  void Add(const v1::Job* job);
  void Remove(const v1::Job& job);
  // The job is about to be in another state.
  void Moves(const v1::Job& job, v1::JobState to);

  const Order& all() const { return all_; }
  const Order& active() const { return active_; }  // those that have not ended
  const JobCensus& census() const { return census_; }
  int64_t newest() const { return next_ - 1; }    // number; 0: there was no job yet
  int64_t NumberOf(const std::string& id) const;  // 0: there is none
  // The newest of a name; null where there is none.
  const v1::Job* Named(const std::string& project, const std::string& name) const;

 private:
  int64_t next_ = 1;
  Order all_, active_;
  std::map<std::string, int64_t> numbers_;                           // by id
  std::set<std::tuple<std::string, std::string, int64_t>> by_name_;  // project, name, number
  JobCensus census_;
};

}  // namespace rlhf::coordinator
