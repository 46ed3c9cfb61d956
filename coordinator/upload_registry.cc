#include "coordinator/upload_registry.h"

#include <algorithm>
#include <utility>

namespace rlhf::coordinator {

std::shared_ptr<Upload> UploadRegistry::Find(const std::string& upload_id) const {
  absl::MutexLock lock(&mu_);
  const auto it = open_.find(upload_id);
  return it == open_.end() ? nullptr : it->second;
}

void UploadRegistry::Keep(const std::string& upload_id, std::shared_ptr<Upload> upload) {
  absl::MutexLock lock(&mu_);
  open_[upload_id] = std::move(upload);
  open_order_.push_back(upload_id);
  while (open_order_.size() > max_open_) {
    open_.erase(open_order_.front());
    open_order_.pop_front();
  }
}

void UploadRegistry::Drop(const std::string& upload_id) {
  absl::MutexLock lock(&mu_);
  open_.erase(upload_id);
  open_order_.erase(std::remove(open_order_.begin(), open_order_.end(), upload_id), open_order_.end());
}

void UploadRegistry::MarkFinished(const std::string& upload_id, Finished finished) {
  absl::MutexLock lock(&mu_);
  if (!finished_.insert_or_assign(upload_id, std::move(finished)).second) return;
  finished_order_.push_back(upload_id);
  if (finished_order_.size() <= max_finished_) return;
  finished_.erase(finished_order_.front());
  finished_order_.pop_front();
}

UploadRegistry::Finished UploadRegistry::FindFinished(const std::string& upload_id) const {
  absl::MutexLock lock(&mu_);
  const auto it = finished_.find(upload_id);
  return it == finished_.end() ? Finished() : it->second;
}

}  // namespace rlhf::coordinator
