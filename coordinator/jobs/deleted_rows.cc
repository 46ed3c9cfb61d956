#include "coordinator/jobs/deleted_rows.h"

#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/log.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

constexpr int kRowsAtOnce = 500;  // a turn of the loop, and a batch

struct Place {
  Table table;
  std::string prefix;
};

std::vector<Place> PlacesOf(const std::string& job_id) {
  return {{Table::kSamples, job_id + "/"},
          {Table::kEvents, job_id + "/"},
          {Table::kFeedbackTasks, job_id + "/"},
          {Table::kComparisons, job_id + "/"},
          {Table::kMeta, CommittedStepPrefix(job_id)},
          {Table::kMeta, CheckpointPrefix(job_id)},
          {Table::kMeta, MonitorStepPrefix(job_id)}};
}

}  // namespace

absl::Status DeletedRows::Recover() {
  const std::string prefix = DeletedKey("");
  return store_->Scan(Table::kMeta, prefix, [&](absl::string_view key, absl::string_view) {
    Begin(std::string(key.substr(prefix.size())));
    return true;
  });
}

void DeletedRows::Mark(const std::string& job_id, WriteBatch* batch) {
  batch->Put(Table::kMeta, DeletedKey(job_id), "");
}

void DeletedRows::Begin(const std::string& job_id) {
  jobs_.push_back(job_id);
  if (jobs_.size() == 1) loop_->Post([this] { EraseSome(); });
}

void DeletedRows::EraseSome() {
  const std::string& id = jobs_.front();
  WriteBatch batch;
  int rows = 0;
  absl::Status read;
  const std::vector<Place> places = PlacesOf(id);
  while (place_ < places.size()) {
    const Place& place = places[place_];
    const std::string after = erased_through_;
    read = store_->ScanAfter(place.table, place.prefix, after, [&](absl::string_view key, absl::string_view) {
      batch.Erase(place.table, std::string(key));
      erased_through_ = std::string(key);
      return ++rows < kRowsAtOnce;
    });
    if (rows == kRowsAtOnce || !read.ok()) break;
    ++place_;
    erased_through_.clear();
  }
  if (!read.ok()) {
    place_ = 0;  // what was read is not erased
    erased_through_.clear();
    spdlog::warn("rows of {}, which was deleted, are tried again in a minute: {}", id, read.ToString());
    return loop_->PostAfter(absl::Minutes(1), [this] { EraseSome(); });
  }
  const bool last = place_ == places.size();
  if (last) batch.Erase(Table::kMeta, DeletedKey(id));
  store_->Commit(std::move(batch), [this, last](const absl::Status& written) {
    if (!written.ok()) return;  // the store answers nothing any more
    loop_->Post([this, last] {
      if (last) {
        jobs_.pop_front();
        place_ = 0;
      }
      if (jobs_.empty()) return gone_();
      EraseSome();
    });
  });
}

}  // namespace rlhf::coordinator
