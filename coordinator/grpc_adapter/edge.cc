#include "coordinator/grpc_adapter/edge.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/fleet_names.h"
#include "common/status_util.h"
#include "coordinator/auth/authorizer.h"

namespace rlhf::coordinator {

uint64_t OpenCalls::Add(std::function<void()> end) {
  uint64_t handle = 0;
  {
    absl::MutexLock lock(&mu_);
    handle = next_++;
    if (!ended_) {
      calls_.emplace(handle, std::move(end));
      return handle;
    }
  }
  end();
  return handle;
}

void OpenCalls::Remove(uint64_t handle) {
  absl::MutexLock lock(&mu_);
  calls_.erase(handle);
}

void OpenCalls::EndAll() {
  std::map<uint64_t, std::function<void()>> calls;
  {
    absl::MutexLock lock(&mu_);
    ended_ = true;
    calls.swap(calls_);
  }
  for (auto& [handle, end] : calls) end();
}

absl::Status Edge::Admit(const Caller& caller, const std::string& project) const {
  absl::Status status = CheckProject(caller, project);
  if (!status.ok() && denials != nullptr) denials->Note(caller.subject, caller.method, "project");
  return status;
}

Sees Edge::SeenBy(const Caller& caller) {
  return [&caller](const std::string& project) { return CheckProject(caller, project).ok(); };
}

std::string Edge::ProjectFor(const Caller& caller, const std::string& requested) {
  if (!requested.empty()) return requested;
  return caller.project.empty() || caller.project == "*" ? "default" : caller.project;
}

absl::StatusOr<v1::Job> Edge::FindJob(const Caller& caller, const std::string& id_or_name,
                                      const std::string& project) const {
  if (id_or_name.empty()) return absl::InvalidArgumentError("job_id: expected a job's id or name, found nothing");
  const std::string wanted = ProjectFor(caller, project);
  absl::StatusOr<v1::Job> job = jobs->Get(id_or_name, wanted);
  // Also where there is no such job: else the answers tell which names another project has.
  RLHF_RETURN_IF_ERROR(Admit(caller, job.ok() ? job->spec().project() : wanted));
  return job;
}

absl::Status Edge::CheckSession(const Caller& caller, const std::string& session_id) const {
  RLHF_ASSIGN_OR_RETURN(const Session* session, fleet->Find(session_id));
  // Without TLS there is no identity to compare with.
  if (caller.role.empty() || SpeaksFor(caller.subject, session->identity.instance_id())) return absl::OkStatus();
  if (denials != nullptr) denials->Note(caller.subject, caller.method, "session");
  return WithReason(absl::PermissionDeniedError(absl::StrCat(
                        "the session is of another instance than the certificate's (", caller.subject, ")")),
                    v1::ROLE_NOT_ALLOWED);
}

absl::StatusOr<int> PageSize(const v1::PageRequest& page) {
  if (page.page_size() == 0) return 100;
  if (page.page_size() < 0 || page.page_size() > 1000) {
    return absl::InvalidArgumentError(absl::StrCat("page_size: expected 1 to 1000, found ", page.page_size()));
  }
  return page.page_size();
}

int32_t BoundedWaitMs(int32_t wait_ms) {
  return std::clamp(wait_ms, 0, 10'000);
}

}  // namespace rlhf::coordinator
