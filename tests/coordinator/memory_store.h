// A StateStore in memory that commits at once, and can be told to fail. For tests of what stands on a store.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

class EdgeMemoryStore final : public StateStore {
 public:
  void Enqueue(WriteBatch batch, Committed done) override {
    absl::Status status;
    {
      absl::MutexLock lock(&mu_);
      status = failure_;
      if (status.ok()) {
        for (WriteBatch::Op& op : batch.ops) {
          auto& table = tables_[static_cast<int>(op.table)];
          if (op.all) {
            table.erase(table.lower_bound(op.key), table.lower_bound(AfterPrefix(op.key)));
          } else if (op.erase) {
            table.erase(op.key);
          } else {
            table[op.key] = std::move(op.value);
          }
        }
      }
    }
    done(status);
  }
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    std::map<std::string, std::string> rows;
    {
      absl::MutexLock lock(&mu_);
      rows = tables_[static_cast<int>(table)];
    }
    for (const auto& [key, value] : rows) {
      if (absl::string_view(key).substr(0, prefix.size()) == prefix && !fn(key, value)) break;
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    absl::MutexLock lock(&mu_);
    const auto& rows = tables_[static_cast<int>(table)];
    const auto it = rows.find(std::string(key));
    if (it == rows.end()) return absl::NotFoundError("no such row");
    return it->second;
  }
  void FailWith(absl::Status status) {
    absl::MutexLock lock(&mu_);
    failure_ = std::move(status);
  }

 private:
  absl::Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::map<int, std::map<std::string, std::string>> tables_ ABSL_GUARDED_BY(mu_);
};

// A store that is read as the rows under it, which outlive it; what becomes of its writes is the derived class's.
class StoreOverRows : public StateStore {
 public:
  explicit StoreOverRows(EdgeMemoryStore* rows) : rows_(rows) {}
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    return rows_->Scan(table, prefix, fn);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override { return rows_->Get(table, key); }

 protected:
  EdgeMemoryStore* const rows_;
};

}  // namespace rlhf::coordinator
