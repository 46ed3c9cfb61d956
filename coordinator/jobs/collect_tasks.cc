#include "coordinator/jobs/collect_tasks.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "artifact/prompt.h"
#include "common/split_mix64.h"

namespace rlhf::coordinator {
namespace {

using Sample = artifact::SampleRecord;
using Candidates = std::vector<const Sample*>;

// Half a gigabyte, while they are ordered.
constexpr uint64_t kMostPairs = 16'777'216;

bool IsMember(const std::string& component) {
  const size_t slash = component.rfind('/');
  return slash != std::string::npos && slash + 1 < component.size() &&
         std::all_of(component.begin() + static_cast<int64_t>(slash) + 1, component.end(),
                     [](unsigned char c) { return absl::ascii_isdigit(c); });
}

void Fill(v1::Candidate* candidate, const Sample& sample, const char* source) {
  candidate->set_text(sample.response);
  candidate->set_source(source);
  candidate->set_sample(absl::StrCat(sample.id, "/", sample.index));
}

// Builds the list; each question once.
class Builder {
 public:
  Builder(const TaskSources& sources, const v1::CollectSpec& spec, uint64_t seed, std::string job_id,
          std::string project)
      : spec_(spec), random_(seed ^ 0x636f6c6c656374ULL), job_id_(std::move(job_id)), project_(std::move(project)) {
    std::map<std::pair<std::string, std::string>, size_t> known;
    for (const Sample& sample : sources.samples) {
      const auto [it, fresh] = known.emplace(std::pair(sample.id, sample.prompt), prompts_.size());
      if (fresh) prompts_.emplace_back();
      prompts_[it->second].first.push_back(&sample);
    }
    for (const Sample& sample : sources.against) {
      if (const auto it = known.find(std::pair(sample.id, sample.prompt)); it != known.end())
        prompts_[it->second].second.push_back(&sample);
    }
    against_ = !sources.against.empty();
    for (size_t i = prompts_.size(); i > 1; --i) std::swap(prompts_[i - 1], prompts_[random_.Below(i)]);
  }

  void DrawRandomly() {
    // A draw may hit what was asked already; after so many rounds without anything new the questions have run out.
    constexpr int kRoundsInVain = 16;
    for (int in_vain = 0; tasks_.size() < wanted() && in_vain < kRoundsInVain; ++in_vain) {
      for (size_t p = 0; p < prompts_.size() && tasks_.size() < wanted(); ++p) {
        if (Draw(p, DrawKind())) in_vain = -1;
      }
    }
  }

  // Of samples of the same prompt, equal texts among them.
  uint64_t Pairs() const {
    uint64_t pairs = 0;
    for (const auto& [mine, others] : prompts_) pairs += static_cast<uint64_t>(mine.size()) * (mine.size() - 1) / 2;
    return pairs;
  }

  void TakeMostDisputed() {
    struct Pair {
      double disagreement;
      size_t prompt;
      const Sample *first, *second;
    };
    std::vector<Pair> pairs;
    for (size_t p = 0; p < prompts_.size(); ++p) {
      const Candidates& all = prompts_[p].first;
      for (size_t i = 0; i < all.size(); ++i) {
        for (size_t j = i + 1; j < all.size(); ++j) {
          if (all[i]->response != all[j]->response)
            pairs.push_back({Disagreement(*all[i], *all[j]), p, all[i], all[j]});
        }
      }
    }
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const Pair& a, const Pair& b) { return a.disagreement > b.disagreement; });
    for (const Pair& pair : pairs) {
      if (tasks_.size() == wanted()) return;
      const bool swap = random_.Uniform() < 0.5;
      if (!Ask(pair.prompt, swap ? pair.second : pair.first, swap ? pair.first : pair.second)) continue;
      tasks_.back().set_disagreement(pair.disagreement);
    }
  }

  void AddPlanted(const std::vector<artifact::ComparisonRecord>& planted) {
    for (const artifact::ComparisonRecord& record : planted) {
      v1::FeedbackTask& task = NewTask(absl::StrFormat("t%07d", tasks_.size()));
      task.set_planted(true);
      task.set_kind(v1::FEEDBACK_COMPARISON);
      task.mutable_prompt()->set_text(record.prompt);
      artifact::SetMessages(record.messages, task.mutable_prompt());
      task.mutable_prompt()->set_category(record.category);
      task.mutable_prompt()->mutable_tags()->insert(record.tags.begin(), record.tags.end());
      const bool swap = random_.Uniform() < 0.5;
      task.mutable_first()->set_text(swap ? record.rejected : record.chosen);
      task.mutable_second()->set_text(swap ? record.chosen : record.rejected);
      // As any other question looks.
      task.mutable_first()->set_source("sample");
      task.mutable_second()->set_source("sample");
      task.set_known(record.tie ? v1::TIE : swap ? v1::SECOND : v1::FIRST);
    }
    if (planted.empty()) return;
    // Ids say nothing about which questions were planted.
    for (size_t i = tasks_.size(); i > 1; --i) tasks_[i - 1].mutable_id()->swap(*tasks_[random_.Below(i)].mutable_id());
  }

  size_t wanted() const { return static_cast<size_t>(spec_.comparisons()); }
  std::vector<v1::FeedbackTask>& tasks() { return tasks_; }

 private:
  v1::FeedbackKind DrawKind() {
    const double u = random_.Uniform();
    double written = spec_.written_candidate_fraction(), rated = spec_.rating_fraction(),
           edited = spec_.edit_fraction();
    if (spec_.pair_ratings()) {  // fractions are of tasks, and a rating that is drawn makes two
      rated = rated / (2 - rated);
      written *= 1 + rated;
      edited *= 1 + rated;
    }
    written_ = !against_ && u < written;
    if (written_ || against_) return v1::FEEDBACK_COMPARISON;
    if (u < written + rated) return v1::FEEDBACK_RATING;
    return u < written + rated + edited ? v1::FEEDBACK_EDIT : v1::FEEDBACK_COMPARISON;
  }

  bool Draw(size_t p, v1::FeedbackKind kind) {
    const Candidates& mine = prompts_[p].first;
    const Sample* first = mine[random_.Below(mine.size())];
    const Sample* second = nullptr;
    if (kind == v1::FEEDBACK_COMPARISON && !written_) {
      Candidates others;
      for (const Sample* other : against_ ? prompts_[p].second : mine) {
        if (other->response != first->response) others.push_back(other);
      }
      if (others.empty()) return false;
      second = others[random_.Below(others.size())];
      if (against_ && random_.Uniform() < 0.5) {
        if (!Ask(p, second, first)) return false;
        tasks_.back().mutable_first()->set_source("against");
        return true;
      }
    }
    if (!Ask(p, first, second, kind)) return false;
    if (kind == v1::FEEDBACK_RATING && spec_.pair_ratings() && tasks_.size() < wanted()) AskAnotherRating(p);
    if (against_) tasks_.back().mutable_second()->set_source("against");
    return true;
  }

  // Right after a rating, so that the same rater mostly gets both: of the answers to the prompt that were not asked
  // about.
  void AskAnotherRating(size_t p) {
    const Candidates& mine = prompts_[p].first;
    const size_t offset = random_.Below(mine.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      if (Ask(p, mine[(offset + i) % mine.size()], nullptr, v1::FEEDBACK_RATING)) return;
    }
  }

  bool Ask(size_t p, const Sample* first, const Sample* second, v1::FeedbackKind kind = v1::FEEDBACK_COMPARISON) {
    const auto key = second == nullptr
                         ? std::tuple(p, static_cast<int>(kind), first->response, std::string())
                         : std::tuple(p, static_cast<int>(kind), std::min(first->response, second->response),
                                      std::max(first->response, second->response));
    if (!asked_.insert(key).second) return false;
    v1::FeedbackTask& task = NewTask(absl::StrFormat("t%07d", tasks_.size()));
    task.set_kind(kind);
    task.mutable_prompt()->set_id(first->id);
    task.mutable_prompt()->set_text(first->prompt);
    artifact::SetMessages(first->messages, task.mutable_prompt());
    task.mutable_prompt()->set_reference(first->reference);
    task.mutable_prompt()->set_category(first->category);
    task.mutable_prompt()->mutable_tags()->insert(first->tags.begin(), first->tags.end());
    Fill(task.mutable_first(), *first, "sample");
    if (second != nullptr) {
      Fill(task.mutable_second(), *second, "sample");
    } else if (kind == v1::FEEDBACK_COMPARISON) {
      task.mutable_second()->set_source("written");
    }
    return true;
  }

  v1::FeedbackTask& NewTask(std::string id) {
    v1::FeedbackTask& task = tasks_.emplace_back();
    task.set_id(std::move(id));
    task.set_job_id(job_id_);
    task.set_project(project_);
    *task.mutable_criteria() = spec_.criteria();
    task.set_state(v1::TASK_OPEN);
    return task;
  }

  const v1::CollectSpec& spec_;
  SplitMix64 random_;
  const std::string job_id_, project_;
  bool against_ = false, written_ = false;
  std::vector<std::pair<Candidates, Candidates>> prompts_;  // samples, and the other policy's
  std::set<std::tuple<size_t, int, std::string, std::string>> asked_;
  std::vector<v1::FeedbackTask> tasks_;
};

}  // namespace

double Disagreement(const Sample& first, const Sample& second) {
  std::vector<double> wins;
  for (const auto& [name, value] : first.components) {
    if (!IsMember(name)) continue;
    const auto other = second.components.find(name);
    if (other != second.components.end()) wins.push_back(1 / (1 + std::exp(other->second - value)));
  }
  if (wins.size() < 2) return 0;
  double mean = 0, squares = 0;
  for (const double win : wins) mean += win / static_cast<double>(wins.size());
  for (const double win : wins) squares += (win - mean) * (win - mean);
  return std::sqrt(squares / static_cast<double>(wins.size() - 1));
}

absl::StatusOr<std::vector<v1::FeedbackTask>> MakeTasks(const TaskSources& sources, const v1::CollectSpec& spec,
                                                        uint64_t seed, const std::string& job_id,
                                                        const std::string& project) {
  Builder builder(sources, spec, seed, job_id, project);
  if (spec.pairs() == v1::PAIRS_DISAGREEMENT) {
    const bool scored = std::any_of(sources.samples.begin(), sources.samples.end(), [](const Sample& sample) {
      return std::any_of(sample.components.begin(), sample.components.end(),
                         [](const auto& component) { return IsMember(component.first); });
    });
    if (!scored) {
      return absl::FailedPreconditionError(
          "pairs: PAIRS_DISAGREEMENT needs samples scored by an ensemble: give the sample job a scorer with an "
          "`ensemble` component");
    }
    if (const uint64_t pairs = builder.Pairs(); pairs > kMostPairs) {
      return absl::FailedPreconditionError(
          absl::StrCat("pairs: PAIRS_DISAGREEMENT compares at most ", kMostPairs, " pairs of answers, found ", pairs,
                       ": collect from samples with fewer answers a prompt, or choose PAIRS_RANDOM"));
    }
    builder.TakeMostDisputed();
  } else {
    builder.DrawRandomly();
  }
  if (builder.tasks().size() < builder.wanted()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the samples give ", builder.tasks().size(), " different questions, ", builder.wanted(),
                     " were asked for: sample more prompts, more answers a prompt, or at a higher temperature"));
  }
  builder.AddPlanted(sources.planted);
  return std::move(builder.tasks());
}

}  // namespace rlhf::coordinator
