// The uploads that are open, and those that were finished lately. Bounded: the bytes of a forgotten upload stay on
// disk, and its client starts it again and goes on.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/event_loop.h"
#include "coordinator/upload_session.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::coordinator {

struct Upload {
  std::shared_ptr<UploadSession> session;  // thread-safe; the rest is for the loop thread
  std::string digest;
  std::string alias;
  std::vector<Done<v1::Artifact>> finishing;
};

// Thread-safe.
class UploadRegistry {
 public:
  explicit UploadRegistry(size_t max_open = 256, size_t max_finished = 1000)
      : max_open_(max_open), max_finished_(max_finished) {}
  std::shared_ptr<Upload> Find(const std::string& upload_id) const;  // nullptr when unknown
  void Keep(const std::string& upload_id, std::shared_ptr<Upload> upload);
  void Drop(const std::string& upload_id);
  struct Finished {
    std::string digest, project;  // both empty when unknown
  };
  void MarkFinished(const std::string& upload_id, Finished finished);
  Finished FindFinished(const std::string& upload_id) const;

 private:
  const size_t max_open_, max_finished_;
  mutable absl::Mutex mu_;
  std::map<std::string, std::shared_ptr<Upload>> open_ ABSL_GUARDED_BY(mu_);
  std::deque<std::string> open_order_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Finished> finished_ ABSL_GUARDED_BY(mu_);
  std::deque<std::string> finished_order_ ABSL_GUARDED_BY(mu_);
};

}  // namespace rlhf::coordinator
