// One import into a set: comparisons come in pieces, are checked, kept once, and written both to the set's log and as
// lines of the artifact that will be published. Blocks on the disk; one call at a time, on any thread.
#pragma once

#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/numeric/int128.h"
#include "coordinator/feedback/comparison_set.h"
#include "coordinator/feedback/import_log.h"
#include "rlhf/v1/feedback_service.pb.h"

namespace rlhf::coordinator {

// Why a comparison cannot be taken; empty when it can.
std::string ImportProblem(const v1::Comparison& comparison);

class ImportSession {
 public:
  struct Start {
    std::string project, name;
    std::string log_path;
    uint64_t log_length = 0;  // durable so far
    std::string staging;      // folder of the artifact to be
    std::function<absl::Status()> make_staging;
    v1::ComparisonSet previous;                                  // the set as it was published last
    std::function<absl::StatusOr<std::string>()> find_previous;  // its artifact's folder; null: there is none
  };
  explicit ImportSession(Start start) : start_(std::move(start)) {}

  absl::Status Begin();
  absl::Status Add(v1::ImportComparisonsRequest* piece);
  // Makes the log durable and closes the artifact's file.
  absl::Status Finish();
  // Ends nothing: what was not finished is cut when the set is imported to again.
  const Start& start() const { return start_; }
  uint64_t log_length() const { return log_length_; }
  v1::ImportComparisonsResponse& response() { return response_; }

 private:
  absl::Status Reread(bool write);

  const Start start_;
  std::unique_ptr<ImportLogWriter> log_;
  uint64_t log_length_ = 0;
  std::ofstream lines_;
  std::unique_ptr<SetBuilder> builder_;
  absl::flat_hash_set<absl::uint128> known_;
  int64_t seen_ = 0;
  v1::ImportComparisonsResponse response_;
};

}  // namespace rlhf::coordinator
