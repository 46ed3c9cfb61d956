// Deletes payloads that nobody needs any more: those of deleted jobs, and of steps that a job's `retention` lets go.
//
// A row that names payloads keeps their segments; a segment that no row names is deleted as a whole. Which those are is
// found by reading all rows, in the background: nothing has to be counted along, and a crash at any point leaves a
// segment too many, which the next sweep finds. Loop thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "coordinator/event_loop.h"
#include "coordinator/store/payload_store.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

class PayloadRetention {
 public:
  PayloadRetention(EventLoop* loop, Background* background, StateStore* store, PayloadStore* payloads)
      : loop_(loop), background_(background), store_(store), payloads_(payloads) {}

  // Deletes the segments that no row names. Soon: what is asked for while a sweep is under way is done by one after it.
  void Sweep();
  // The same, the newest segment included: rows of a job were erased, and what was written last may be its.
  void SweepAll();
  // The samples of a job's steps up to `step`, from 1, keep their rows, which say so from then on, but not their
  // payloads. They must be ended for good: rows of theirs are written by nobody else. A sweep follows once that may
  // delete a segment.
  void FreeThrough(const std::string& job_id, int64_t step);
  // Forgets what a deleted job had asked for.
  void Forget(const std::string& job_id) { freeing_.erase(job_id); }

  int64_t freed_bytes() const { return freed_bytes_; }  // of segments deleted since the start

 private:
  struct Freeing {
    int64_t through = 0;  // steps
    bool running = false;
    std::string at;  // key of the last row that was looked at
  };
  void FreeSlice(const std::string& job_id);
  void Look(const std::vector<uint32_t>& candidates);
  void Swept(const absl::StatusOr<uint64_t>& freed);

  EventLoop* const loop_;
  Background* const background_;
  StateStore* const store_;
  PayloadStore* const payloads_;
  std::map<std::string, Freeing> freeing_;
  uint64_t unnamed_bytes_ = 0;  // that rows gave up since the last sweep
  bool sweeping_ = false, again_ = false;
  int64_t freed_bytes_ = 0;
};

}  // namespace rlhf::coordinator
