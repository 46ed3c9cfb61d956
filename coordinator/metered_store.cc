#include "coordinator/metered_store.h"

#include <utility>

#include <prometheus/counter.h>
#include <prometheus/histogram.h>

#include "coordinator/store/store_decorator.h"

namespace rlhf::coordinator {
namespace {

class MeteredStore final : public StoreDecorator {
 public:
  MeteredStore(std::unique_ptr<StateStore> store, MetricsRegistry* metrics, const Clock* clock,
               std::atomic<bool>* failed)
      : StoreDecorator(std::move(store)),
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

 private:
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
