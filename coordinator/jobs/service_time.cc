#include "coordinator/jobs/service_time.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

constexpr char kKey[] = "service_time";  // of table meta: Unix seconds, decimal
constexpr absl::Duration kKeptEvery = absl::Minutes(1);

}  // namespace

absl::Status ServiceTime::Begin(StateStore* store, const Clock* clock) {
  store_ = store;
  clock_ = clock;
  began_at_ = clock->Now();
  began_ = clock->WallNow();
  const absl::StatusOr<std::string> kept = store->Get(Table::kMeta, kKey);
  if (absl::IsNotFound(kept.status())) return absl::OkStatus();
  if (!kept.ok()) return kept.status();
  int64_t seconds = 0;
  if (!absl::SimpleAtoi(*kept, &seconds)) {
    return absl::DataLossError(
        absl::StrCat("the store's ", kKey, ": expected Unix seconds, found \"", *kept, "\": restore a backup"));
  }
  began_ = absl::FromUnixSeconds(seconds);
  return absl::OkStatus();
}

void ServiceTime::Keep() {
  if (clock_->Now() - kept_at_ < kKeptEvery) return;
  kept_at_ = clock_->Now();
  WriteBatch batch;
  batch.Put(Table::kMeta, kKey, absl::StrCat(absl::ToUnixSeconds(Now())));
  store_->Commit(std::move(batch), [](absl::Status) {});
}

}  // namespace rlhf::coordinator
