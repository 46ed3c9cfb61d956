// How the job table's jobs are found and listed.
#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status_util.h"
#include "coordinator/jobs/job_table.h"
#include "coordinator/jobs/spec.h"
#include "coordinator/page_limit.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr int kDefaultPage = 100;

int64_t CreatedNs(const v1::Job& job) {
  return absl::ToUnixNanos(FromTimestamp(job.created_at()));
}

}  // namespace

absl::StatusOr<v1::Job> JobTable::Get(const std::string& id_or_name, const std::string& project) {
  const v1::Job* job = Find(id_or_name);
  if (job == nullptr) job = index_.Named(project.empty() ? "default" : project, id_or_name);
  if (job == nullptr) return UnknownJob(id_or_name);
  return *job;
}

const v1::Job* JobTable::Find(const std::string& job_id) const {
  const auto it = jobs_.find(job_id);
  return it == jobs_.end() ? nullptr : &it->second.job;
}

int64_t JobTable::Visit(int64_t after, absl::FunctionRef<void(const v1::Job&)> fn) const {
  for (const auto& [number, job] : index_.active()) {
    if (number > after) break;
    fn(*job);
  }
  for (auto it = index_.all().upper_bound(after); it != index_.all().end(); ++it) fn(*it->second);
  return index_.newest();
}

absl::StatusOr<int64_t> JobTable::PlaceOf(const std::string& page_token, bool newest_first) const {
  const std::pair<std::string, std::string> last = absl::StrSplit(page_token, absl::MaxSplits('@', 1));
  // An earlier release's token is the id alone.
  if (const int64_t number = index_.NumberOf(last.first); number > 0) return number;
  int64_t created = 0;
  if (!absl::SimpleAtoi(last.second, &created))
    return absl::InvalidArgumentError("page_token: expected the one of the previous answer");
  // Deleted meanwhile: on from where it was, between the last that came before it and the first after it.
  int64_t place = newest_first ? 0 : index_.newest() + 1;
  for (const auto& [number, job] : index_.all()) {
    const bool before = std::pair(CreatedNs(*job), job->id()) < std::pair(created, last.first);
    if (newest_first && before) place = std::max(place, number + 1);
    if (!newest_first && !before) place = std::min(place, number - 1);
  }
  return place;
}

absl::StatusOr<v1::ListJobsResponse> JobTable::List(const v1::ListJobsRequest& request) {
  const bool newest_first = request.order_by().empty() || request.order_by() == "created_at desc";
  if (!newest_first && request.order_by() != "created_at") {
    return absl::InvalidArgumentError(
        absl::StrCat("order_by: expected \"created_at desc\" or \"created_at\", found \"", request.order_by(), "\""));
  }
  const std::set<int> states(request.states().begin(), request.states().end());
  const bool ended_too = states.empty() || std::any_of(states.begin(), states.end(), [](int state) {
                           return IsTerminal(static_cast<v1::JobState>(state));
                         });
  const JobIndex::Order& order = ended_too ? index_.all() : index_.active();
  int64_t after = newest_first ? std::numeric_limits<int64_t>::max() : 0;
  if (!request.page().page_token().empty()) {
    RLHF_ASSIGN_OR_RETURN(after, PlaceOf(request.page().page_token(), newest_first));
  }
  PageLimit page(request.page().page_size() <= 0 ? kDefaultPage : request.page().page_size());
  v1::ListJobsResponse response;
  const auto take = [&](const v1::Job& job) {  // whether there is room for more
    if (!job.parent_id().empty() && !request.include_stages()) return true;
    if (!request.project().empty() && job.spec().project() != request.project()) return true;
    if (!request.kind().empty() && KindOf(job.spec()) != request.kind()) return true;
    if (!states.empty() && states.count(job.state()) == 0) return true;
    if (page.Take(job.ByteSizeLong())) {
      *response.add_jobs() = job;
      return true;
    }
    const v1::Job& last = response.jobs(response.jobs_size() - 1);
    response.set_next_page_token(absl::StrCat(last.id(), "@", CreatedNs(last)));
    return false;
  };
  if (newest_first) {
    for (auto it = std::make_reverse_iterator(order.lower_bound(after)); it != order.rend() && take(*it->second); ++it)
      continue;
  } else {
    for (auto it = order.upper_bound(after); it != order.end() && take(*it->second); ++it) continue;
  }
  return response;
}

}  // namespace rlhf::coordinator
