#include "coordinator/jobs/collect_tasks.h"

#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/prompt.h"

namespace rlhf::coordinator {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {  // SplitMix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  size_t Below(size_t n) { return static_cast<size_t>(Next() % n); }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};

void Fill(v1::Candidate* candidate, const artifact::SampleRecord& sample) {
  candidate->set_text(sample.response);
  candidate->set_source("sample");
  candidate->set_sample(absl::StrCat(sample.id, "/", sample.index));
}

}  // namespace

absl::StatusOr<std::vector<v1::FeedbackTask>> MakeTasks(const std::vector<artifact::SampleRecord>& samples,
                                                        const v1::CollectSpec& spec, uint64_t seed,
                                                        const std::string& job_id, const std::string& project) {
  std::vector<std::vector<const artifact::SampleRecord*>> prompts;
  std::map<std::pair<std::string, std::string>, size_t> known;
  for (const artifact::SampleRecord& sample : samples) {
    const auto [it, fresh] = known.emplace(std::pair(sample.id, sample.prompt), prompts.size());
    if (fresh) prompts.emplace_back();
    prompts[it->second].push_back(&sample);
  }
  Random random(seed ^ 0x636f6c6c656374ULL);
  for (size_t i = prompts.size(); i > 1; --i) std::swap(prompts[i - 1], prompts[random.Below(i)]);

  std::vector<v1::FeedbackTask> tasks;
  std::set<std::tuple<size_t, std::string, std::string>> asked;
  const auto wanted = static_cast<size_t>(spec.comparisons());
  // A draw may hit what was asked already; after so many rounds without anything new the questions have run out.
  constexpr int kRoundsInVain = 16;
  for (int in_vain = 0; tasks.size() < wanted && in_vain < kRoundsInVain; ++in_vain) {
    for (size_t p = 0; p < prompts.size() && tasks.size() < wanted; ++p) {
      const auto& candidates = prompts[p];
      const bool written = random.Uniform() < spec.written_candidate_fraction();
      const artifact::SampleRecord* first = candidates[random.Below(candidates.size())];
      const artifact::SampleRecord* second = nullptr;
      if (!written) {
        std::vector<const artifact::SampleRecord*> others;
        for (const artifact::SampleRecord* other : candidates) {
          if (other->response != first->response) others.push_back(other);
        }
        if (others.empty()) continue;
        second = others[random.Below(others.size())];
      }
      const bool again = second == nullptr ? !asked.emplace(p, first->response, "").second
                                           : !asked
                                                  .emplace(p, std::min(first->response, second->response),
                                                           std::max(first->response, second->response))
                                                  .second;
      if (again) continue;
      in_vain = -1;
      v1::FeedbackTask& task = tasks.emplace_back();
      task.set_id(absl::StrFormat("t%07d", tasks.size() - 1));
      task.set_job_id(job_id);
      task.set_project(project);
      task.mutable_prompt()->set_id(first->id);
      task.mutable_prompt()->set_text(first->prompt);
      artifact::SetMessages(first->messages, task.mutable_prompt());
      task.mutable_prompt()->set_reference(first->reference);
      task.mutable_prompt()->set_category(first->category);
      task.mutable_prompt()->mutable_tags()->insert(first->tags.begin(), first->tags.end());
      Fill(task.mutable_first(), *first);
      if (second == nullptr) {
        task.mutable_second()->set_source("written");
      } else {
        Fill(task.mutable_second(), *second);
      }
      *task.mutable_criteria() = spec.criteria();
      task.set_state(v1::TASK_OPEN);
    }
  }
  if (tasks.size() < wanted) {
    return absl::FailedPreconditionError(
        absl::StrCat("the samples give ", tasks.size(), " different questions, ", wanted,
                     " were asked for: sample more prompts, more answers a prompt, or at a higher temperature"));
  }
  return tasks;
}

}  // namespace rlhf::coordinator
