// Samples that take the place of others: of damaged ones, of a refused step's, of a prompt's that failed.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "coordinator/sampling_impl.h"

namespace rlhf::coordinator {

bool SamplingImpl::Regenerate(ActiveJob& job, const SampleKey& key, const absl::Status& why, WriteBatch* batch) {
  if (++job.failures[key] >= job.plan.max_attempts) return false;
  const LogScope scope({.job_id = job.plan.job_id, .step = std::get<0>(key)});
  job.last_problem = absl::StrCat("sample ", std::get<0>(key), "/", std::get<1>(key), "/", std::get<2>(key),
                                  " is lost and generated anew: ", why.message());
  spdlog::error("job {}: {}", job.plan.job_id, job.last_problem);
  job.cache.Erase(key);
  job.score_after.erase(key);
  job.ledger.Replace(key, v1::SAMPLE_FAILED, std::string(why.message()), -1, batch);
  job.announced[std::get<0>(key)] = false;
  ServeSoon();
  return true;
}

void SamplingImpl::RefuseStep(const std::string& job_id, int64_t step, const std::string& reason, int64_t first_prompt,
                              WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  std::vector<SampleKey> keys;
  for (const v1::SampleRow* row : job->ledger.Step(step)) {
    if (IsOpen(row->state())) keys.push_back(KeyOfSample(row->id()));
  }
  for (const SampleKey& key : keys) {
    job->leases.erase(key);
    job->slow.erase(key);
    job->cache.Erase(key);
    job->ForgetFailures(key);
    job->score_after.erase(key);
    job->ledger.Replace(key, v1::SAMPLE_FAILED, reason, first_prompt + std::get<1>(key), batch);
  }
  job->announced[step] = false;
  ServeSoon();
}

std::vector<v1::SampleRow> SamplingImpl::FailedOf(const std::string& job_id, int64_t step) const {
  std::vector<v1::SampleRow> failed;
  const ActiveJob* job = Find(job_id);
  if (job == nullptr) return failed;
  for (const v1::SampleRow* row : job->ledger.Step(step)) {
    if (row->state() == v1::SAMPLE_FAILED) failed.push_back(*row);
  }
  return failed;
}

void SamplingImpl::ReplacePrompt(const std::string& job_id, int64_t step, int32_t ordinal, const std::string& reason,
                                 int64_t prompt_index, WriteBatch* batch) {
  ActiveJob* job = Find(job_id);
  if (job == nullptr) return;
  std::vector<SampleKey> failed, scored;
  for (const v1::SampleRow* row : job->ledger.Step(step)) {
    if (row->id().ordinal() != ordinal) continue;
    if (row->state() == v1::SAMPLE_FAILED) failed.push_back(KeyOfSample(row->id()));
    if (row->state() == v1::SCORED) scored.push_back(KeyOfSample(row->id()));
  }
  for (const SampleKey& key : failed) job->ledger.Reissue(key, prompt_index, batch);
  for (const SampleKey& key : scored) job->ledger.Replace(key, v1::SAMPLE_FAILED, reason, prompt_index, batch);
  for (const auto* keys : {&failed, &scored}) {
    for (const SampleKey& key : *keys) {
      job->cache.Erase(key);
      job->ForgetFailures(key);
      job->score_after.erase(key);
      job->score_tries.erase(key);
    }
  }
  job->announced[step] = false;
  ServeSoon();
}

}  // namespace rlhf::coordinator
