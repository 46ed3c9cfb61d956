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
#include "absl/time/time.h"
#include "artifact/artifact_root.h"
#include "artifact/tokenizer.h"
#include "coordinator/event_loop.h"

namespace rlhf::coordinator {

class TokenTexts {
 public:
  explicit TokenTexts(const std::string& artifact_root) : root_(artifact_root) {}
  static constexpr absl::Duration kPatience = absl::Seconds(5);

  // One text a token, special tokens included. A character that several tokens make together is the last one's.
  // NotFound when the artifact is not here; OutOfRange for an id the tokenizer does not know; Unavailable when the
  // artifacts' volume does not answer within kPatience.
  absl::StatusOr<std::vector<std::string>> Of(const std::string& model_digest, const std::vector<int32_t>& tokens);

 private:
  absl::StatusOr<std::shared_ptr<const artifact::Tokenizer>> TokenizerOf(const std::string& digest);

  const artifact::ArtifactRoot root_;
  absl::Mutex mu_;
  std::map<std::string, std::shared_ptr<const artifact::Tokenizer>> tokenizers_ ABSL_GUARDED_BY(mu_);
  // Being read; whoever asks for one of them waits for the same reading.
  struct Reading;
  std::map<std::string, std::shared_ptr<Reading>> readings_ ABSL_GUARDED_BY(mu_);
  const std::unique_ptr<Background> thread_ = Background::StartThreads(1);  // the last: it uses the rest
};

// The digest of the model whose tokenizer made a job's samples, from the job as the protobuf JSON mapping writes it;
// empty for a job that generates nothing.
std::string SampledModelOf(const std::string& job_json);

}  // namespace rlhf::coordinator
