#include "coordinator/payload_retention.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "coordinator/ledger.h"
#include "coordinator/store/keys.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {
namespace {

constexpr int kRowsOfASlice = 256;  // a turn of the loop

// The segments that rows name.
absl::StatusOr<std::set<uint32_t>> NamedSegments(StateStore* store) {
  std::set<uint32_t> named;
  absl::Status bad;
  const absl::Status status = store->Scan(Table::kSamples, "", [&](absl::string_view key, absl::string_view value) {
    v1::SampleRow row;
    if (!row.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
      bad = absl::DataLossError("a sample's row cannot be read");
      return false;
    }
    if (row.has_payload()) named.insert(row.payload().segment());
    if (row.has_score()) named.insert(row.score().segment());
    return true;
  });
  if (!status.ok()) return status;
  if (!bad.ok()) return bad;
  return named;
}

}  // namespace

void PayloadRetention::SweepAll() {
  payloads_->Roll();
  Sweep();
}

void PayloadRetention::Sweep() {
  if (std::exchange(sweeping_, true)) {
    again_ = true;
    return;
  }
  again_ = false;
  unnamed_bytes_ = 0;
  const absl::StatusOr<std::vector<uint32_t>> sealed = payloads_->Sealed();
  if (!sealed.ok() || sealed->empty()) return Swept(sealed.ok() ? absl::StatusOr<uint64_t>(0) : sealed.status());
  // Every row whose payload is in a sealed segment was handed to the store before this: behind an empty batch the rows
  // name all that is needed.
  store_->Commit(WriteBatch(), [this, candidates = *sealed](const absl::Status& status) {
    if (!status.ok()) return loop_->Post([this, status] { Swept(status); });
    // By the loop, which runs nothing any more when the threads are gone.
    loop_->Post([this, candidates] { background_->Run([this, candidates] { Look(candidates); }); });
  });
}

void PayloadRetention::Look(const std::vector<uint32_t>& candidates) {
  absl::StatusOr<uint64_t> freed = 0;
  if (const absl::StatusOr<std::set<uint32_t>> named = NamedSegments(store_); named.ok()) {
    std::vector<uint32_t> unused;
    for (const uint32_t segment : candidates) {
      if (named->count(segment) == 0) unused.push_back(segment);
    }
    if (!unused.empty()) freed = payloads_->Remove(unused);
  } else {
    freed = named.status();
  }
  loop_->Post([this, freed] { Swept(freed); });
}

void PayloadRetention::Swept(const absl::StatusOr<uint64_t>& freed) {
  sweeping_ = false;
  if (!freed.ok()) {
    spdlog::warn("payloads that nobody needs stay for now: {}", std::string(freed.status().message()));
    return;  // the next one tries again
  }
  if (*freed > 0) spdlog::info("deleted {} MB of payloads that no job needs any more", *freed / 1'000'000);
  freed_bytes_ += static_cast<int64_t>(*freed);
  if (again_) Sweep();
}

void PayloadRetention::FreeThrough(const std::string& job_id, int64_t step) {
  Freeing& freeing = freeing_[job_id];
  if (step <= freeing.through) return;
  if (freeing.through == 0) {  // since this start; what an earlier one freed is not read again
    int64_t done = 0;
    const absl::StatusOr<std::string> mark = store_->Get(Table::kMeta, FreedKey(job_id));
    if (mark.ok() && absl::SimpleAtoi(*mark, &done)) {
      freeing.at = KeyOf(Ledger::Prefix(job_id), {static_cast<uint64_t>(done + 1)});
      freeing.through = done;
    }
  }
  if (step <= freeing.through) return;
  freeing.through = step;
  if (!std::exchange(freeing.running, true)) FreeSlice(job_id);
}

void PayloadRetention::FreeSlice(const std::string& job_id) {
  const auto found = freeing_.find(job_id);
  if (found == freeing_.end()) return;  // the job was deleted
  Freeing& freeing = found->second;
  WriteBatch batch;
  int rows = 0;
  bool more = false;
  const std::string after = freeing.at;
  const absl::Status status = store_->ScanAfter(
      Table::kSamples, Ledger::Prefix(job_id), after, [&](absl::string_view key, absl::string_view value) {
        v1::SampleRow row;
        row.ParseFromArray(value.data(), static_cast<int>(value.size()));
        if (row.id().step() > freeing.through) return false;
        freeing.at = std::string(key);
        if (row.has_payload() || row.has_score()) {
          unnamed_bytes_ += row.payload().size() + row.score().size();
          row.clear_payload();
          row.clear_score();
          row.set_freed(true);
          batch.Put(Table::kSamples, std::string(key), row.SerializeAsString());
        }
        more = ++rows == kRowsOfASlice;
        return !more;
      });
  if (!status.ok()) {
    spdlog::warn("payloads of {} stay for now: {}", job_id, std::string(status.message()));
    freeing.running = false;
    freeing.through = 0;
    return;
  }
  const int64_t done = freeing.through;
  if (!more) batch.Put(Table::kMeta, FreedKey(job_id), absl::StrCat(done));
  store_->Commit(std::move(batch), [this, job_id, more, done](const absl::Status& written) {
    loop_->Post([this, job_id, more, done, written] {
      if (!written.ok()) return;  // the store answers nothing any more
      const auto it = freeing_.find(job_id);
      if (it == freeing_.end()) return;
      if (more || it->second.through > done) return FreeSlice(job_id);  // or more was asked for meanwhile
      it->second.running = false;
      if (unnamed_bytes_ >= kSegmentBytes) Sweep();
    });
  });
}

}  // namespace rlhf::coordinator
