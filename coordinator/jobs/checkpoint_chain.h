// A job's checkpoints, the newest in the job's row and every one in a row of its own: the one before takes the newest's
// place should that be damaged, and so on. Loop thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "coordinator/jobs/driver.h"

namespace rlhf::coordinator {

std::string CheckpointKey(const std::string& job_id, int64_t step);  // in Table::kMeta; the value is a digest
// The digests of a job's checkpoints that may be gone back to, by step. One that it starts from is the first of them.
std::map<int64_t, std::string> CheckpointsOf(const v1::Job& job, StateStore* store);

class CheckpointChain {
 public:
  CheckpointChain(JobHost* host, std::string job_id) : host_(host), job_id_(std::move(job_id)) {}

  // A published artifact of the state after a step. One of an older step than the newest is only kept to fall back to.
  void Add(int64_t step, const std::string& digest, WriteBatch* batch);
  // The newest cannot be read, and why: the one before is the newest now. With none left, training begins anew.
  void DropNewest(const std::string& why, WriteBatch* batch);
  // Whether the state after the newest step is to be saved: as often as the specification says, and when the job is
  // leaving its learners.
  bool due(bool leaving) const;

 private:
  // What the job's retention does not keep, now that `newest` is durable and `before` is the step of the one before:
  // older checkpoints, and samples that a return to none of those that are kept would train from again. A job that
  // keeps all its checkpoints keeps samples for the newest two, or it would free none.
  void LetGo(int64_t before, const std::string& newest, WriteBatch* batch);

  JobHost* const host_;
  const std::string job_id_;
};

}  // namespace rlhf::coordinator
