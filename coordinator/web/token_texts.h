// The text of each token of a response, by the tokenizer of the model that made it; for the samples browser.
// Thread-safe; reads files on first use of a model.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "artifact/artifact_root.h"
#include "artifact/tokenizer.h"

namespace rlhf::coordinator {

class TokenTexts {
 public:
  explicit TokenTexts(const std::string& artifact_root) : root_(artifact_root) {}

  // One text a token, special tokens included. A character that several tokens make together is the last one's.
  // NotFound when the artifact is not here; OutOfRange for an id the tokenizer does not know.
  absl::StatusOr<std::vector<std::string>> Of(const std::string& model_digest, const std::vector<int32_t>& tokens);

 private:
  absl::StatusOr<std::shared_ptr<const artifact::Tokenizer>> TokenizerOf(const std::string& digest);

  const artifact::ArtifactRoot root_;
  absl::Mutex mu_;
  std::map<std::string, std::shared_ptr<const artifact::Tokenizer>> tokenizers_ ABSL_GUARDED_BY(mu_);
};

// The digest of the model whose tokenizer made a job's samples, from the job as the protobuf JSON mapping writes it;
// empty for a job that generates nothing.
std::string SampledModelOf(const std::string& job_json);

}  // namespace rlhf::coordinator
