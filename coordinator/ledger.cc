#include "coordinator/ledger.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"

namespace rlhf::coordinator {
namespace {

[[noreturn]] void Impossible(const std::string& job_id, const SampleKey& key, const char* what) {
  // A programmer's error: going on would break the equation that everything else trusts.
  std::fprintf(stderr, "ledger of %s: sample %lld/%d/%d: %s\n", job_id.c_str(),
               static_cast<long long>(std::get<0>(key)), std::get<1>(key), std::get<2>(key), what);
  std::abort();
}

bool Allowed(v1::SampleState from, v1::SampleState to) {
  switch (to) {
    case v1::LEASED:
      return from == v1::QUEUED;
    case v1::QUEUED:
    case v1::GENERATED:
      return from == v1::LEASED;
    case v1::SCORED:
      return from == v1::GENERATED;
    case v1::ASSIGNED:
      return from == v1::SCORED || from == v1::TRAINED;
    case v1::TRAINED:
      return from == v1::ASSIGNED;
    case v1::DELIVERED:
      return false;  // by count alone: DeliverScored
    default:
      return IsOpen(from);
  }
}

int64_t OpenIn(const v1::LedgerCounts& c) {
  return c.queued() + c.leased() + c.generated() + c.scored() + c.assigned();
}

constexpr int64_t kOnlyStep = 0;  // of a job without training

}  // namespace

SampleKey KeyOfSample(const v1::SampleId& id) {
  return {id.step(), id.ordinal(), id.index()};
}

bool IsOpen(v1::SampleState state) {
  return state == v1::QUEUED || state == v1::LEASED || state == v1::GENERATED || state == v1::SCORED ||
         state == v1::ASSIGNED;
}

void CountSample(v1::SampleState state, v1::LedgerCounts* counts, int64_t by) {
  counts->set_issued(counts->issued() + by);
  switch (state) {
    case v1::QUEUED:
      return counts->set_queued(counts->queued() + by);
    case v1::LEASED:
      return counts->set_leased(counts->leased() + by);
    case v1::GENERATED:
      return counts->set_generated(counts->generated() + by);
    case v1::SCORED:
      return counts->set_scored(counts->scored() + by);
    case v1::ASSIGNED:
      return counts->set_assigned(counts->assigned() + by);
    case v1::TRAINED:
      return counts->set_trained(counts->trained() + by);
    case v1::DELIVERED:
      return counts->set_delivered(counts->delivered() + by);
    case v1::STALE:
      return counts->set_stale(counts->stale() + by);
    case v1::SAMPLE_FAILED:
      return counts->set_failed(counts->failed() + by);
    case v1::SAMPLE_CANCELLED:
      return counts->set_cancelled(counts->cancelled() + by);
    default:
      return;
  }
}

void AddCounts(const v1::LedgerCounts& from, v1::LedgerCounts* to, int64_t by) {
  to->set_issued(to->issued() + by * from.issued());
  to->set_queued(to->queued() + by * from.queued());
  to->set_leased(to->leased() + by * from.leased());
  to->set_generated(to->generated() + by * from.generated());
  to->set_scored(to->scored() + by * from.scored());
  to->set_assigned(to->assigned() + by * from.assigned());
  to->set_trained(to->trained() + by * from.trained());
  to->set_delivered(to->delivered() + by * from.delivered());
  to->set_stale(to->stale() + by * from.stale());
  to->set_failed(to->failed() + by * from.failed());
  to->set_cancelled(to->cancelled() + by * from.cancelled());
}

bool Balanced(const v1::LedgerCounts& c) {
  return c.issued() == c.queued() + c.leased() + c.generated() + c.scored() + c.assigned() + c.trained() +
                           c.delivered() + c.stale() + c.failed() + c.cancelled();
}

std::string Ledger::RowKey(const std::string& job_id, const SampleKey& key) {
  return KeyOf(Prefix(job_id), {static_cast<uint64_t>(std::get<0>(key)), static_cast<uint64_t>(std::get<1>(key)),
                                static_cast<uint64_t>(std::get<2>(key))});
}

std::string Ledger::ArchivedRowKey(const std::string& job_id, const SampleKey& key, int32_t attempt) {
  return KeyOf(RowKey(job_id, key), {static_cast<uint64_t>(attempt)});
}

void Ledger::Count(int64_t step, v1::SampleState state, int64_t by) {
  CountSample(state, &counts_, by);
  CountSample(state, &steps_[step], by);
}

void Ledger::Restore(const v1::SampleRow& row, bool archived, bool keep) {
  Count(row.id().step(), row.state(), 1);
  if (archived || (!keep && !IsOpen(row.state()))) return;
  const SampleKey key = KeyOfSample(row.id());
  rows_[key] = row;
  if (row.state() == v1::QUEUED) Queue(key);
  if (row.state() == v1::LEASED) leased_.insert(key);
  if (row.state() == v1::GENERATED) generated_.insert(key);
}

void Ledger::RestoreLetGo(const v1::SampleRow& row) {
  Count(row.id().step(), row.state(), 1);
  ++let_go_;
}

void Ledger::Issue(const SampleKey& key, int64_t prompt_index, WriteBatch* batch) {
  const auto [it, fresh] = rows_.try_emplace(key);
  if (!fresh) Impossible(job_id_, key, "issued twice");
  v1::SampleRow& row = it->second;
  row.mutable_id()->set_job_id(job_id_);
  row.mutable_id()->set_step(std::get<0>(key));
  row.mutable_id()->set_ordinal(std::get<1>(key));
  row.mutable_id()->set_index(std::get<2>(key));
  row.set_state(v1::QUEUED);
  row.set_prompt_index(prompt_index);
  Queue(key);
  Count(std::get<0>(key), v1::QUEUED, 1);
  Put(row, batch);
}

int32_t Ledger::Lease(const SampleKey& key, const std::string& worker_id, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::LEASED);
  row.set_attempt(row.attempt() + 1);
  row.set_worker_id(worker_id);
  Put(row, batch);
  return row.attempt();
}

int32_t Ledger::Hedge(const SampleKey& key, const std::string& worker_id, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  if (row.state() != v1::LEASED) Impossible(job_id_, key, "hedged, but not leased");
  row.set_attempt(row.attempt() + 1);
  row.set_worker_id(worker_id);
  Put(row, batch);
  return row.attempt();
}

void Ledger::Requeue(const SampleKey& key, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::QUEUED);
  row.clear_worker_id();
  Put(row, batch);
}

void Ledger::Generated(const SampleKey& key, const v1::PayloadRef& payload, const std::string& digest,
                       const v1::PolicyVersion& oldest, WriteBatch* batch, const v1::SampleTimes& times) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::GENERATED);
  *row.mutable_payload() = payload;
  row.set_digest(digest);
  *row.mutable_version() = oldest;
  *row.mutable_times() = times;
  Put(row, batch);
}

void Ledger::Scored(const SampleKey& key, const v1::PayloadRef& score, WriteBatch* batch,
                    const v1::SampleTimes& scoring) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::SCORED);
  if (score.segment() != 0) *row.mutable_score() = score;
  row.mutable_times()->MergeFrom(scoring);
  Put(row, batch);
}

void Ledger::Assign(const SampleKey& key, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::ASSIGNED);
  row.set_assigned_step(std::get<0>(key));
  Put(row, batch);
}

void Ledger::Train(const SampleKey& key, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::TRAINED);
  Put(row, batch);
}

void Ledger::Untrain(const SampleKey& key, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::ASSIGNED);
  Put(row, batch);
}

void Ledger::Cancel(const SampleKey& key, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::SAMPLE_CANCELLED);
  Put(row, batch);
}

void Ledger::Fail(const SampleKey& key, const std::string& reason, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, v1::SAMPLE_FAILED);
  row.set_reason(reason);
  Put(row, batch);
}

void Ledger::Replace(const SampleKey& key, v1::SampleState state, const std::string& reason, int64_t prompt_index,
                     WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  Move(row, state);
  row.set_reason(reason);
  Supersede(row, prompt_index < 0 ? row.prompt_index() : prompt_index, batch);
}

void Ledger::Reissue(const SampleKey& key, int64_t prompt_index, WriteBatch* batch) {
  v1::SampleRow& row = Row(key);
  if (row.state() != v1::SAMPLE_FAILED) Impossible(job_id_, key, "issued anew, but not failed");
  Supersede(row, prompt_index, batch);
}

void Ledger::Supersede(v1::SampleRow& row, int64_t prompt_index, WriteBatch* batch) {
  const SampleKey key = KeyOfSample(row.id());
  batch->Put(Table::kSamples, ArchivedRowKey(job_id_, key, row.attempt()), row.SerializeAsString());
  v1::SampleRow fresh;
  *fresh.mutable_id() = row.id();
  fresh.set_state(v1::QUEUED);
  fresh.set_attempt(row.attempt());  // the next lease's is one more: results of older attempts stay fenced off
  fresh.set_prompt_index(prompt_index);
  row = fresh;
  Queue(key);
  Count(std::get<0>(key), v1::QUEUED, 1);
  Put(row, batch);
}

void Ledger::Readmit(const v1::SampleRow& row) {
  rows_.try_emplace(KeyOfSample(row.id()), row);
}

void Ledger::Settle(int64_t step, WriteBatch* batch) {
  const int64_t before = base_.through_step();
  while (!steps_.empty() && steps_.begin()->first <= step && OpenIn(steps_.begin()->second) == 0) {
    AddCounts(steps_.begin()->second, base_.mutable_counts());
    base_.set_through_step(steps_.begin()->first);
    steps_.erase(steps_.begin());
  }
  if (base_.through_step() == before) return;
  Forget(base_.through_step());
  PutBase(batch);
}

void Ledger::RestoreBase(const v1::LedgerBase& base) {
  base_ = base;
  AddCounts(base.counts(), &counts_);
}

void Ledger::Unsettle(int64_t step, const std::vector<v1::SampleRow>& rows, WriteBatch* batch) {
  for (const v1::SampleRow& row : rows) {
    if (row.id().step() <= step || row.id().step() > base_.through_step()) continue;
    CountSample(row.state(), base_.mutable_counts(), -1);
    CountSample(row.state(), &steps_[row.id().step()]);
  }
  base_.set_through_step(std::min(step, base_.through_step()));
  PutBase(batch);
}

void Ledger::PutBase(WriteBatch* batch) const {
  batch->Put(Table::kMeta, BaseKey(job_id_), base_.SerializeAsString());
}

void Ledger::Forget(int64_t step) {
  for (auto it = rows_.begin(); it != rows_.end() && std::get<0>(it->first) <= step;) {
    it = IsOpen(it->second.state()) ? std::next(it) : rows_.erase(it);
  }
}

void Ledger::LetGo() {
  const auto end = rows_.lower_bound({kOnlyStep + 1, 0, 0});
  for (auto it = rows_.lower_bound({kOnlyStep, 0, 0}); it != end;) {
    const bool scored = it->second.state() == v1::SCORED;
    let_go_ += scored ? 1 : 0;
    it = scored ? rows_.erase(it) : std::next(it);
  }
}

void Ledger::EndLetGo(v1::SampleState state) {
  if (let_go_ == 0) return;
  Count(kOnlyStep, v1::SCORED, -let_go_);
  Count(kOnlyStep, state, let_go_);
  let_go_ = 0;
}

void Ledger::DeliverScored() {
  LetGo();
  EndLetGo(v1::DELIVERED);
}

void Ledger::CancelLetGo() {
  EndLetGo(v1::SAMPLE_CANCELLED);
}

v1::SampleState Ledger::EndState(v1::SampleState row, const v1::LedgerCounts& counts) {
  if (row != v1::SCORED || counts.scored() > 0) return row;
  return counts.delivered() > 0 ? v1::DELIVERED : v1::SAMPLE_CANCELLED;
}

const v1::SampleRow* Ledger::Find(const SampleKey& key) const {
  const auto it = rows_.find(key);
  return it == rows_.end() ? nullptr : &it->second;
}

std::vector<const v1::SampleRow*> Ledger::Step(int64_t step) const {
  std::vector<const v1::SampleRow*> out;
  for (auto it = rows_.lower_bound({step, 0, 0}); it != rows_.end() && std::get<0>(it->first) == step; ++it)
    out.push_back(&it->second);
  return out;
}

std::vector<SampleKey> Ledger::Open() const {
  std::vector<SampleKey> out;
  for (const auto& [key, row] : rows_) {
    if (IsOpen(row.state())) out.push_back(key);
  }
  return out;
}

bool Ledger::StepScored(int64_t step) const {
  const auto counts = steps_.find(step);
  if (counts == steps_.end() || counts->second.queued() + counts->second.leased() + counts->second.generated() > 0)
    return false;
  bool any = step == kOnlyStep && let_go_ > 0;
  for (const v1::SampleRow* row : Step(step)) {
    any = true;
    if (row->state() != v1::SCORED && row->state() != v1::ASSIGNED && row->state() != v1::TRAINED &&
        row->state() != v1::DELIVERED)
      return false;
  }
  return any;
}

bool Ledger::StepEndedShort(int64_t step) const {
  const auto counts = steps_.find(step);
  if (counts == steps_.end() || counts->second.failed() == 0 ||
      counts->second.queued() + counts->second.leased() + counts->second.generated() > 0)
    return false;
  const std::vector<const v1::SampleRow*> rows = Step(step);
  return std::any_of(rows.begin(), rows.end(),
                     [](const v1::SampleRow* row) { return row->state() == v1::SAMPLE_FAILED; });
}

void Ledger::Move(v1::SampleRow& row, v1::SampleState to) {
  const SampleKey key = KeyOfSample(row.id());
  const v1::SampleState from = row.state();
  if (!Allowed(from, to)) {
    Impossible(job_id_, key,
               absl::StrCat("cannot go from ", v1::SampleState_Name(from), " to ", v1::SampleState_Name(to)).c_str());
  }
  if (from == v1::QUEUED) queued_.erase(key);
  if (from == v1::LEASED) leased_.erase(key);
  if (from == v1::GENERATED) generated_.erase(key);
  if (to == v1::LEASED) leased_.insert(key);
  if (to == v1::GENERATED) generated_.insert(key);
  Count(std::get<0>(key), from, -1);
  Count(std::get<0>(key), to, 1);
  row.set_state(to);
  if (to == v1::QUEUED) Queue(key);
}

void Ledger::Queue(const SampleKey& key) {
  queued_.insert(key);
  if (on_queued_) on_queued_(key);
}

v1::SampleRow& Ledger::Row(const SampleKey& key) {
  const auto it = rows_.find(key);
  if (it == rows_.end()) Impossible(job_id_, key, "unknown");
  return it->second;
}

void Ledger::Put(const v1::SampleRow& row, WriteBatch* batch) {
  changed_[row.id().step()] = ++changes_;
  batch->Put(Table::kSamples, RowKey(job_id_, KeyOfSample(row.id())), row.SerializeAsString());
}

}  // namespace rlhf::coordinator
