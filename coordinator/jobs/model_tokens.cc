#include "coordinator/jobs/model_tokens.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "artifact/same_tokens.h"
#include "common/status_util.h"
#include "coordinator/artifacts.h"

namespace rlhf::coordinator {
namespace {

struct TokenReader {
  std::string field;   // "ppo.critic", "ppo.reference"
  std::string model;   // as the specification names it
  std::string policy;  // the same of the policy
  Artifacts::Finder find, find_policy;
};

std::vector<TokenReader> TokenReadersOf(const v1::Job& job, const Artifacts& artifacts) {
  const v1::PpoSpec& spec = job.spec().ppo();
  std::vector<TokenReader> readers;
  if (job.version().step() > job.start().step()) return readers;
  const std::string policy = Resolved(job, spec.policy());
  const auto add = [&](const char* field, const std::string& model) {
    const std::string digest = Resolved(job, model);
    if (!digest.empty() && digest != policy)
      readers.push_back({field, model, spec.policy(), artifacts.Locate(digest), artifacts.Locate(policy)});
  };
  if (spec.advantage() == v1::GAE) add("ppo.critic", spec.critic());
  if (!spec.has_lora()) add("ppo.reference", spec.reference());
  return readers;
}

absl::Status CheckTokenReaders(const std::vector<TokenReader>& readers) {
  for (const TokenReader& reader : readers) {
    const absl::StatusOr<std::string> dir = reader.find(), policy_dir = reader.find_policy();
    for (const absl::Status& status : {dir.status(), policy_dir.status()})
      if (ReasonOf(status) == v1::STORE_UNAVAILABLE) return status;
    if (!dir.ok() || !policy_dir.ok()) continue;
    const absl::Status same = artifact::CheckSameTokens(*policy_dir, *dir);
    if (same.ok() || absl::IsNotFound(same)) continue;
    return absl::InvalidArgumentError(absl::StrCat(reader.field, ": expected a model with the tokens of ppo.policy, ",
                                                   reader.policy, ", whose ids it is given, found ", reader.model,
                                                   " with others (", same.message(),
                                                   "): name a model of the policy's family, or the policy itself"));
  }
  return absl::OkStatus();
}

}  // namespace

void CheckModelTokens(JobHost* host, const std::string& job_id, absl::AnyInvocable<void()> then) {
  const JobsDeps& deps = host->deps();
  std::vector<TokenReader> readers = TokenReadersOf(*host->Find(job_id), *deps.artifacts);
  if (readers.empty()) return then();
  deps.background->Run(
      [host, job_id, loop = deps.loop, readers = std::move(readers), then = std::move(then)]() mutable {
        absl::Status status = CheckTokenReaders(readers);
        loop->Post(host->WhileActive(job_id, [host, job_id, status, then = std::move(then)]() mutable {
          if (status.ok()) return then();
          if (ReasonOf(status) != v1::STORE_UNAVAILABLE)
            return host->Fail(job_id, "BAD_DATA", std::string(status.message()));
          host->deps().loop->PostAfter(kTryVolumeAgain,
                                       host->WhileActive(job_id, [host, job_id, then = std::move(then)]() mutable {
                                         CheckModelTokens(host, job_id, std::move(then));
                                       }));
        }));
      });
}

}  // namespace rlhf::coordinator
