#include "coordinator/metered_store.h"

#include <utility>

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

namespace rlhf::coordinator {
namespace {

class MeteredStore final : public StateStore {
 public:
  MeteredStore(std::unique_ptr<StateStore> store, MetricsRegistry* metrics, const Clock* clock,
               std::atomic<bool>* failed)
      : store_(std::move(store)),
        failed_(failed),
        clock_(clock),
        seconds_(metrics->Histogram("rlhf_store_commit_seconds", "Time from a write's request to its being durable.",
                                    {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10})),
        failures_(metrics->Counter("rlhf_store_commit_failures_total", "Writes that could not be made durable.")) {}

  void Enqueue(WriteBatch batch, Committed done) override {
    store_->Commit(std::move(batch),
                   [this, started = clock_->Now(), done = std::move(done)](absl::Status status) mutable {
                     seconds_.Observe(absl::ToDoubleSeconds(clock_->Now() - started));
                     if (!status.ok()) {
                       failures_.Increment();
                       *failed_ = true;
                     }
                     done(status);
                   });
  }
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

 private:
  const std::unique_ptr<StateStore> store_;
  std::atomic<bool>* const failed_;
  const Clock* const clock_;
  prometheus::Histogram& seconds_;
  prometheus::Counter& failures_;
};

}  // namespace

std::unique_ptr<StateStore> WithCommitMetrics(std::unique_ptr<StateStore> store, MetricsRegistry* metrics,
                                              const Clock* clock, std::atomic<bool>* failed) {
  return std::make_unique<MeteredStore>(std::move(store), metrics, clock, failed);
}

}  // namespace rlhf::coordinator
