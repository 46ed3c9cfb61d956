#include "coordinator/grpc_adapter/collect_lookup.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

absl::StatusOr<CollectTarget> OfPipeline(const Edge& edge, const v1::Job& pipeline) {
  const auto& stages = pipeline.spec().pipeline().stages();
  const auto wanted =
      std::count_if(stages.begin(), stages.end(), [](const v1::StageSpec& stage) { return stage.has_collect(); });
  CollectTarget target;
  int64_t begun = 0;
  for (const std::string& id : pipeline.children()) {
    RLHF_ASSIGN_OR_RETURN(const v1::Job child, edge.jobs->Get(id, pipeline.spec().project()));
    if (!child.spec().has_collect()) continue;
    ++begun;
    target.last_id = child.id();
    // A stage that waits for its turn has no tasks yet.
    if (target.job_id.empty() && !IsTerminal(child.state()) && edge.feedback->HasTasks(child.id()))
      target.job_id = child.id();
    if (!IsTerminal(child.state()) && target.job_id != child.id()) target.more_to_come = true;
  }
  // A gate may send a round back, to more comparisons: only its end says that there are none.
  const bool rounds = pipeline.spec().pipeline().rounds() > 1 ||
                      std::any_of(stages.begin(), stages.end(), [](const v1::StageSpec& stage) {
                        return stage.gate().on_closed() == v1::GATE_REPEATS_ROUND;
                      });
  target.more_to_come = target.more_to_come || begun < wanted || (rounds && !IsTerminal(pipeline.state()));
  target.closed = target.job_id.empty() && (IsTerminal(pipeline.state()) || !target.more_to_come);
  return target;
}

absl::StatusOr<CollectTarget> AnyOpen(const Edge& edge, const std::string& project) {
  v1::ListJobsRequest request;
  request.set_project(project);
  request.set_kind("collect");
  request.set_include_stages(true);
  for (const v1::JobState state : {v1::PENDING, v1::RUNNING, v1::WAITING}) request.add_states(state);
  request.mutable_page()->set_page_size(1000);
  RLHF_ASSIGN_OR_RETURN(const v1::ListJobsResponse jobs, edge.jobs->List(request));
  CollectTarget target;
  // Newest first: the last one that has tasks has waited longest.
  for (const v1::Job& job : jobs.jobs()) {
    if (edge.feedback->HasTasks(job.id())) target.job_id = job.id();
  }
  target.more_to_come = true;
  return target;
}

}  // namespace

absl::StatusOr<CollectTarget> FindCollect(const Edge& edge, const Caller& caller, const std::string& reference,
                                          const std::string& project) {
  if (reference.empty()) {
    const std::string owner = Edge::ProjectFor(caller, project);
    RLHF_RETURN_IF_ERROR(edge.Admit(caller, owner));
    return AnyOpen(edge, owner);
  }
  RLHF_ASSIGN_OR_RETURN(const v1::Job job, edge.FindJob(caller, reference, project));
  if (job.spec().has_pipeline()) return OfPipeline(edge, job);
  if (!job.spec().has_collect()) {
    return absl::InvalidArgumentError(absl::StrCat("job_id: expected a collect job, or a pipeline that has one; \"",
                                                   reference, "\" is of another kind"));
  }
  CollectTarget target;
  target.last_id = job.id();
  target.closed = IsTerminal(job.state());
  if (!target.closed && edge.feedback->HasTasks(job.id())) target.job_id = job.id();
  return target;
}

}  // namespace rlhf::coordinator
