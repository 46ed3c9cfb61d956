// One job's samples: identity, state, attempt, and the counts that must always add up. Knows neither leases' holders,
// time nor the network.
//
// Every change writes the sample's row into the caller's batch, but the end of those that were let go. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/data.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// (step, ordinal, index): the order in which samples are issued.
using SampleKey = std::tuple<int64_t, int32_t, int32_t>;
SampleKey KeyOfSample(const v1::SampleId& id);

class Ledger {
 public:
  // on_queued (may be null) is told of every sample that becomes queued, once its row says so.
  explicit Ledger(std::string job_id, std::function<void(const SampleKey&)> on_queued = nullptr)
      : job_id_(std::move(job_id)), on_queued_(std::move(on_queued)) {
    base_.set_through_step(-1);
  }

  // Row keys: of the sample, and of one that was superseded (stale or failed, its place taken by a new attempt).
  static std::string RowKey(const std::string& job_id, const SampleKey& key);
  static std::string ArchivedRowKey(const std::string& job_id, const SampleKey& key, int32_t attempt);
  static std::string Prefix(const std::string& job_id) { return job_id + "/"; }

  // A row from the store; archived: it came from an ArchivedRowKey. Only counted when its story is over and its step is
  // no longer needed.
  void Restore(const v1::SampleRow& row, bool archived, bool keep);
  // The same of a scored sample that is to be let go (see LetGo) as it was before the restart.
  void RestoreLetGo(const v1::SampleRow& row);

  void Issue(const SampleKey& key, int64_t prompt_index, WriteBatch* batch);
  // queued → leased; returns the new attempt.
  int32_t Lease(const SampleKey& key, const std::string& worker_id, WriteBatch* batch);
  // A second attempt of a leased sample, which may overtake the first; returns the new attempt.
  int32_t Hedge(const SampleKey& key, const std::string& worker_id, WriteBatch* batch);
  // leased → queued: expired, handed back, or generating failed.
  void Requeue(const SampleKey& key, WriteBatch* batch);
  // leased → generated. `times` so far.
  void Generated(const SampleKey& key, const v1::PayloadRef& payload, const std::string& digest,
                 const v1::PolicyVersion& oldest, WriteBatch* batch, const v1::SampleTimes& times = {});
  // generated → scored. score may be empty (jobs without a scorer). What `scoring` says is added to the times.
  void Scored(const SampleKey& key, const v1::PayloadRef& score, WriteBatch* batch,
              const v1::SampleTimes& scoring = {});
  void Assign(const SampleKey& key, WriteBatch* batch);   // scored → assigned
  void Train(const SampleKey& key, WriteBatch* batch);    // assigned → trained
  void Untrain(const SampleKey& key, WriteBatch* batch);  // trained → assigned: its step is replayed
  void Cancel(const SampleKey& key, WriteBatch* batch);   // open → cancelled
  void Fail(const SampleKey& key, const std::string& reason, WriteBatch* batch);  // open → failed, for good
  // The sample ends as `state` (stale or failed) and a new one, queued, takes its identity; prompt_index −1 keeps the
  // prompt.
  void Replace(const SampleKey& key, v1::SampleState state, const std::string& reason, int64_t prompt_index,
               WriteBatch* batch);
  // A sample that failed at an attempt stays failed, and a new one of another prompt, queued, takes its identity.
  void Reissue(const SampleKey& key, int64_t prompt_index, WriteBatch* batch);
  // Brings a trained row that was forgotten back for a replay.
  void Readmit(const v1::SampleRow& row);
  // The samples of steps up to `step` are final (a durable checkpoint lies behind them): they are forgotten, and their
  // counts go into the job's LedgerBase, so that a restart need not read their rows. Stops before a step with an open
  // sample.
  void Settle(int64_t step, WriteBatch* batch);
  // The base a restart found; then Restore gets the rows of later steps only.
  void RestoreBase(const v1::LedgerBase& base);
  // Takes steps after `step` out of the base again, given all their rows: a rollback behind a settled checkpoint.
  void Unsettle(int64_t step, const std::vector<v1::SampleRow>& rows, WriteBatch* batch);
  int64_t settled_through() const { return base_.through_step(); }
  // Meta key of a job's LedgerBase.
  static std::string BaseKey(const std::string& job_id) { return "ledger/" + job_id; }
  // Forgets ended samples of steps up to `step` (rows and counts stay).
  void Forget(int64_t step);
  // Of a job without training, whose samples are all of one step: its scored samples are only counted from here on, so
  // that memory does not grow with their number. Their rows are as they are written; no call names them any more, but
  // the next two. In which state they end is said by the job's LedgerBase alone: EndState.
  void LetGo();
  void DeliverScored();  // LetGo, then scored → delivered, all of them
  void CancelLetGo();    // those that were let go: scored → cancelled
  int64_t let_go() const { return let_go_; }
  // The state of a sample whose row says `row`, in a job that has ended with these counts.
  static v1::SampleState EndState(v1::SampleState row, const v1::LedgerCounts& counts);

  const v1::SampleRow* Find(const SampleKey& key) const;
  const std::set<SampleKey>& queued() const { return queued_; }  // in issue order
  const std::set<SampleKey>& leased() const { return leased_; }
  const std::set<SampleKey>& generated() const { return generated_; }
  std::vector<const v1::SampleRow*> Step(int64_t step) const;  // in issue order, those in memory
  std::vector<SampleKey> Open() const;
  size_t rows() const { return rows_.size(); }  // in memory
  // All samples of the step are scored, assigned, trained or delivered; false for a step without samples.
  bool StepScored(int64_t step) const;
  // Nothing of the step is to come any more, and some of it failed for good.
  bool StepEndedShort(int64_t step) const;
  const v1::LedgerCounts& counts() const { return counts_; }
  // The counts at one moment, to be compared with rows that are read later: those of settled steps together, those of
  // each other step, and where the job's changes stood.
  struct Snapshot {
    v1::LedgerBase base;
    std::map<int64_t, v1::LedgerCounts> steps;
    uint64_t changes = 0;
  };
  Snapshot TakeSnapshot() const { return {base_, steps_, changes_}; }
  // Whether a row of the step was written since.
  bool ChangedSince(int64_t step, const Snapshot& snapshot) const {
    const auto it = changed_.find(step);
    return it != changed_.end() && it->second > snapshot.changes;
  }

 private:
  void Move(v1::SampleRow& row, v1::SampleState to);
  void Count(int64_t step, v1::SampleState state, int64_t by);
  void EndLetGo(v1::SampleState state);
  void PutBase(WriteBatch* batch) const;
  v1::SampleRow& Row(const SampleKey& key);
  void Queue(const SampleKey& key);
  // The row, which has ended, is kept beside the sample's, and a queued one takes its place.
  void Supersede(v1::SampleRow& row, int64_t prompt_index, WriteBatch* batch);
  void Put(const v1::SampleRow& row, WriteBatch* batch);

  const std::string job_id_;
  const std::function<void(const SampleKey&)> on_queued_;
  std::map<SampleKey, v1::SampleRow> rows_;
  std::set<SampleKey> queued_, leased_, generated_;
  int64_t let_go_ = 0;  // scored samples that are only counted
  v1::LedgerCounts counts_;
  uint64_t changes_ = 1;                       // grows with every row that is written
  std::map<int64_t, uint64_t> changed_;        // by step: at its newest row
  std::map<int64_t, v1::LedgerCounts> steps_;  // of steps that are not settled
  v1::LedgerBase base_;                        // of those that are
};

bool IsOpen(v1::SampleState state);
// Adds one sample of a state to counts (issued too).
void CountSample(v1::SampleState state, v1::LedgerCounts* counts, int64_t by = 1);
void AddCounts(const v1::LedgerCounts& from, v1::LedgerCounts* to, int64_t by = 1);
// The states' sum equals `issued`.
bool Balanced(const v1::LedgerCounts& counts);

}  // namespace rlhf::coordinator
