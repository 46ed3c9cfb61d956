// A store in front of another one.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

// Reads are those of the store behind it, as it makes them; what becomes of writes is the derived class's.
class StoreDecorator : public StateStore {
 public:
  explicit StoreDecorator(std::unique_ptr<StateStore> store) : store_(std::move(store)) {}
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    return store_->Scan(table, prefix, fn);
  }
  absl::Status ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                         absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    return store_->ScanAfter(table, prefix, after, fn);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override { return store_->Get(table, key); }
  absl::StatusOr<std::string> LastKey(Table table, absl::string_view prefix) override {
    return store_->LastKey(table, prefix);
  }
  absl::Status BackUp(const std::string& path) override { return store_->BackUp(path); }

 protected:
  std::unique_ptr<StateStore> store_;
};

}  // namespace rlhf::coordinator
