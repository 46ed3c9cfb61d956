#include "coordinator/jobs/deleted_rows.h"

#include <utility>

#include "absl/time/time.h"
#include "common/log.h"
#include "coordinator/store/keys.h"

namespace rlhf::coordinator {
namespace {

constexpr int kRowsAtOnce = 500;  // a turn of the loop, and a batch

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
  const auto erase = [&](Table table, const std::string& prefix) {
    if (rows >= kRowsAtOnce || !read.ok()) return;
    read = store_->Scan(table, prefix, [&](absl::string_view key, absl::string_view) {
      batch.Erase(table, std::string(key));
      return ++rows < kRowsAtOnce;
    });
  };
  for (const Table table : {Table::kSamples, Table::kEvents, Table::kFeedbackTasks, Table::kComparisons})
    erase(table, id + "/");
  for (const std::string& prefix : {CommittedStepPrefix(id), CheckpointPrefix(id), MonitorStepPrefix(id)})
    erase(Table::kMeta, prefix);
  if (!read.ok()) {
    spdlog::warn("rows of {}, which was deleted, are tried again in a minute: {}", id, read.ToString());
    return loop_->PostAfter(absl::Minutes(1), [this] { EraseSome(); });
  }
  const bool last = rows < kRowsAtOnce;
  if (last) batch.Erase(Table::kMeta, DeletedKey(id));
  store_->Commit(std::move(batch), [this, last](const absl::Status& written) {
    if (!written.ok()) return;  // the store answers nothing any more
    loop_->Post([this, last] {
      if (last) jobs_.pop_front();
      if (jobs_.empty()) return gone_();
      EraseSome();
    });
  });
}

}  // namespace rlhf::coordinator
