#include "coordinator/jobs/model_tokens.h"

#include "absl/strings/str_cat.h"
#include "artifact/same_tokens.h"
#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

std::vector<TokenReader> TokenReadersOf(const v1::Job& job, const Artifacts& artifacts) {
  const v1::PpoSpec& spec = job.spec().ppo();
  std::vector<TokenReader> readers;
  const std::string policy = Resolved(job, spec.policy());
  const absl::StatusOr<std::string> policy_dir = artifacts.Path(policy);
  if (!policy_dir.ok()) return readers;
  const auto add = [&](const char* field, const std::string& model) {
    const std::string digest = Resolved(job, model);
    const absl::StatusOr<std::string> dir = artifacts.Path(digest);
    if (dir.ok() && digest != policy) readers.push_back({field, model, spec.policy(), *dir, *policy_dir});
  };
  if (spec.advantage() == v1::GAE) add("ppo.critic", spec.critic());
  if (!spec.has_lora()) add("ppo.reference", spec.reference());
  return readers;
}

absl::Status CheckTokenReaders(const std::vector<TokenReader>& readers) {
  for (const TokenReader& reader : readers) {
    const absl::Status same = artifact::CheckSameTokens(reader.policy_dir, reader.dir);
    if (same.ok() || absl::IsNotFound(same)) continue;
    return absl::InvalidArgumentError(absl::StrCat(reader.field, ": expected a model with the tokens of ppo.policy, ",
                                                   reader.policy, ", whose ids it is given, found ", reader.model,
                                                   " with others (", same.message(),
                                                   "): name a model of the policy's family, or the policy itself"));
  }
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
