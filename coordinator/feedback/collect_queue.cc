#include "coordinator/feedback/collect_queue.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "coordinator/page_limit.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr double kHighestRating = 10;
constexpr size_t kLongestComment = 8192, kLongestGroup = 64;

bool IsPreference(v1::Preference preference) {
  return preference == v1::FIRST || preference == v1::SECOND || preference == v1::TIE;
}

v1::FeedbackKind KindOf(const v1::FeedbackTask& task) {
  return task.kind() == v1::FEEDBACK_KIND_UNSPECIFIED ? v1::FEEDBACK_COMPARISON : task.kind();
}

std::string RatingProblem(const char* field, const v1::FeedbackTask& task,
                          const google::protobuf::Map<std::string, double>& ratings) {
  for (const auto& [criterion, value] : ratings) {
    if (std::find(task.criteria().begin(), task.criteria().end(), criterion) == task.criteria().end()) {
      return absl::StrCat(field, ": expected one of the task's criteria (", absl::StrJoin(task.criteria(), ", "),
                          "), found \"", criterion, "\"");
    }
    if (!(value >= 0 && value <= kHighestRating))
      return absl::StrCat(field, ".", criterion, ": expected 0 to ", kHighestRating, ", found ", value);
  }
  return "";
}

}  // namespace

int64_t CollectQueue::wanted() const {
  return std::min<int64_t>(spec_.comparisons(), static_cast<int64_t>(order_.size()));
}

void CollectQueue::Add(v1::FeedbackTask task) {
  const std::string id = task.id();
  (task.planted() ? planted_ : order_).push_back(id);
  if (!task.planted()) {
    answered_ += task.state() == v1::TASK_ANSWERED ? 1 : 0;
    skipped_ += task.state() == v1::TASK_SKIPPED ? 1 : 0;
    expired_ += task.state() == v1::TASK_EXPIRED ? 1 : 0;
  }
  references_.insert(task.prompt().reference().empty() ? "" : "set");
  categories_.insert(task.prompt().category().empty() ? "" : "set");
  std::set<std::string> names;
  for (const auto& [name, value] : task.prompt().tags()) names.insert(name);
  tags_.insert(absl::StrJoin(names, "\n"));
  tasks_[id].task = std::move(task);
}

void CollectQueue::Restore(const v1::Comparison& comparison) {
  RaterCounts& counts = raters_[comparison.rater()];
  ++(comparison.planted() ? counts.planted : counts.answered);
  planted_answers_ += comparison.planted() ? 1 : 0;
  ++by_kind_[v1::FeedbackKind_Name(comparison.kind())];
  const auto it = tasks_.find(comparison.task_id());
  if (it == tasks_.end()) return;
  it->second.answered_by.insert(comparison.rater());
  absl::string_view number = comparison.id();
  int used = 0;
  if (absl::ConsumePrefix(&number, absl::StrCat(comparison.task_id(), "-")) && absl::SimpleAtoi(number, &used))
    it->second.next_number = std::max(it->second.next_number, used + 1);
}

bool CollectQueue::MayGet(const std::string& rater, const Entry& entry) const {
  if (entry.task.state() != v1::TASK_OPEN || entry.answered_by.count(rater) > 0 || entry.held_by.count(rater) > 0)
    return false;
  const auto& skipped = entry.task.skipped_by();
  return std::find(skipped.begin(), skipped.end(), rater) == skipped.end();
}

absl::Duration CollectQueue::HeldFor() const {
  return absl::Seconds(spec_.task_timeout_seconds() > 0 ? spec_.task_timeout_seconds() : 600);
}

void CollectQueue::Give(const std::string& rater, absl::Duration now, Entry* entry, v1::NextTasksResponse* response) {
  if (entry->held_by.insert_or_assign(rater, now + HeldFor()).second) entry->handed_to[rater] = ++handings_;
  v1::FeedbackTask& handed = *response->add_tasks();
  handed = entry->task;
  handed.set_state(v1::TASK_HANDED_OUT);
  handed.set_rater(rater);
  Blind(&handed);
}

void CollectQueue::Blind(v1::FeedbackTask* task) const {
  task->clear_planted();
  task->clear_known();
  task->clear_skipped_by();
  task->clear_disagreement();
  task->clear_created_at();  // tells the order in which tasks were made
  v1::Prompt& prompt = *task->mutable_prompt();
  prompt.clear_id();
  if (!planted_.empty()) {
    if (references_.size() > 1) prompt.clear_reference();
    if (categories_.size() > 1) prompt.clear_category();
    if (tags_.size() > 1) prompt.clear_tags();
  }
  const auto blind = [](v1::Candidate* candidate) {
    candidate->clear_sample();
    if (!candidate->source().empty() && candidate->source() != "written") candidate->set_source("sample");
  };
  blind(task->mutable_first());
  if (task->has_second()) blind(task->mutable_second());
}

CollectQueue::Entry* CollectQueue::NextPlanted(const std::string& rater) {
  for (const std::string& id : planted_) {
    if (Entry& entry = tasks_[id]; MayGet(rater, entry)) return &entry;
  }
  return nullptr;
}

std::vector<CollectQueue::Entry*> CollectQueue::InHand(const std::string& rater) {
  std::vector<Entry*> entries;
  for (auto& [id, entry] : tasks_) {
    if (entry.task.state() == v1::TASK_OPEN && entry.held_by.count(rater) > 0) entries.push_back(&entry);
  }
  std::sort(entries.begin(), entries.end(),
            [&](const Entry* a, const Entry* b) { return a->handed_to.at(rater) < b->handed_to.at(rater); });
  return entries;
}

void CollectQueue::HandOut(const std::string& rater, int most, absl::Duration now, v1::NextTasksResponse* response) {
  while (first_open_ < order_.size() && tasks_[order_[first_open_]].task.state() != v1::TASK_OPEN) ++first_open_;
  RaterCounts given = raters_[rater];  // what the rater has, answered or in hand
  PageLimit page(most);
  for (Entry* entry : InHand(rater)) {
    ++(entry->task.planted() ? given.planted : given.answered);
    if (response->tasks_size() == most) continue;
    if (!page.Take(entry->task.ByteSizeLong())) return;
    Give(rater, now, entry, response);
  }
  for (size_t i = first_open_; i < order_.size() && response->tasks_size() < most; ++i) {
    Entry& entry = tasks_[order_[i]];
    if (!MayGet(rater, entry)) continue;
    if (static_cast<int>(entry.answered_by.size() + entry.held_by.size()) >= overlap()) continue;
    if (!planted_.empty() &&
        static_cast<double>(given.planted) < spec_.planted_fraction() * static_cast<double>(given.answered + 1)) {
      if (Entry* planted = NextPlanted(rater); planted != nullptr) {
        if (!page.Take(planted->task.ByteSizeLong())) return;
        Give(rater, now, planted, response);
        ++given.planted;
      }
    }
    if (!page.Take(entry.task.ByteSizeLong())) return;
    Give(rater, now, &entry, response);
    ++given.answered;
  }
}

void CollectQueue::TakeBackLate(absl::Duration now) {
  if (any_may_be_in_hand_until_.has_value() && now > *any_may_be_in_hand_until_) any_may_be_in_hand_until_.reset();
  for (auto& [id, entry] : tasks_) {
    std::erase_if(entry.held_by, [&](const auto& held) { return now > held.second; });
  }
}

void CollectQueue::Restarted(absl::Duration now) {
  any_may_be_in_hand_until_ = now + HeldFor();
}

void CollectQueue::TakeOverHolders(const CollectQueue& replaced) {
  any_may_be_in_hand_until_ = replaced.any_may_be_in_hand_until_;
  for (auto& [id, entry] : tasks_) {
    const auto it = replaced.tasks_.find(id);
    if (it == replaced.tasks_.end()) continue;
    entry.held_by = it->second.held_by;
    entry.handed_to = it->second.handed_to;
    handings_ = replaced.handings_;
    entry.next_number = std::max(entry.next_number, it->second.next_number);
  }
}

std::vector<v1::FeedbackTask> CollectQueue::Expire(absl::Duration age) {
  std::vector<v1::FeedbackTask> changed;
  if (spec_.task_expiry_seconds() <= 0 || age <= absl::Seconds(spec_.task_expiry_seconds())) return changed;
  for (const std::string& id : order_) {
    Entry& entry = tasks_[id];
    if (entry.task.state() != v1::TASK_OPEN) continue;
    entry.task.set_state(v1::TASK_EXPIRED);
    entry.held_by.clear();
    ++expired_;
    changed.push_back(entry.task);
  }
  return changed;
}

std::string CollectQueue::ProblemOf(const v1::FeedbackTask& task, const v1::Answer& answer) {
  if (!(answer.strength() >= 0 && answer.strength() <= 1))
    return absl::StrCat("strength: expected 0 to 1, found ", answer.strength());
  if (answer.comment().size() > kLongestComment)
    return absl::StrCat("comment: expected at most ", kLongestComment, " bytes, found ", answer.comment().size());
  if (answer.rater_group().size() > kLongestGroup)
    return absl::StrCat("rater_group: expected at most ", kLongestGroup, " bytes");
  std::string problem = RatingProblem("first_ratings", task, answer.first_ratings());
  if (problem.empty()) problem = RatingProblem("second_ratings", task, answer.second_ratings());
  if (!problem.empty()) return problem;
  switch (KindOf(task)) {
    case v1::FEEDBACK_RATING:
      if (!answer.written().empty() || answer.preference() != v1::PREFERENCE_UNSPECIFIED)
        return "this task asks for ratings only, by criterion";
      if (answer.first_ratings_size() != task.criteria_size())
        return absl::StrCat("first_ratings: expected one for each of ", absl::StrJoin(task.criteria(), ", "));
      return "";
    case v1::FEEDBACK_EDIT:
      if (answer.written().empty()) return "written: this task asks for a better version of the answer, found none";
      if (answer.written() == task.first().text()) return "written: expected a better version, found the same text";
      if (answer.preference() != v1::PREFERENCE_UNSPECIFIED && answer.preference() != v1::SECOND)
        return "preference: expected SECOND or nothing: an edit is the better answer";
      return "";
    default:
      break;
  }
  if (!IsPreference(answer.preference())) return "preference: expected FIRST, SECOND or TIE";
  const bool writes = task.second().source() == "written" && task.second().text().empty();
  if (writes && answer.written().empty()) return "written: this task asks for an answer in your own words, found none";
  if (!writes && !answer.written().empty()) return "written: this task compares two given answers";
  return "";
}

CollectQueue::Taken CollectQueue::Take(const std::string& rater, const v1::Answer& answer, absl::Time at) {
  Taken taken;
  const auto it = tasks_.find(answer.task_id());
  if (it == tasks_.end()) {
    taken.problem = absl::StrCat("no such task in job ", answer.job_id());
    return taken;
  }
  Entry& entry = it->second;
  // The first answer counts; its reply may have been lost.
  if (entry.answered_by.count(rater) > 0) return taken;
  if (entry.task.state() == v1::TASK_ANSWERED)
    taken.problem = "already answered";
  else if (entry.task.state() == v1::TASK_SKIPPED || entry.task.state() == v1::TASK_EXPIRED)
    taken.problem = entry.task.state() == v1::TASK_SKIPPED ? "this task was skipped" : "this task has expired";
  else if (entry.handed_to.count(rater) == 0 && !any_may_be_in_hand_until_.has_value())
    taken.problem =
        "this task was not handed to you: expected an answer to one that NextTasks (the page, `rlhfctl feedback next`) "
        "gave you; ask for tasks again";
  else
    taken.problem = ProblemOf(entry.task, answer);
  if (!taken.problem.empty()) return taken;

  const v1::FeedbackTask& task = entry.task;
  const bool single = overlap() == 1 && !task.planted();
  v1::Comparison& made = taken.comparison;
  made.set_id(single ? task.id() : absl::StrCat(task.id(), "-", entry.next_number));
  made.set_project(project_);
  made.set_task_id(task.id());
  made.set_kind(KindOf(task));
  made.set_planted(task.planted());
  made.set_known(task.known());
  *made.mutable_prompt() = task.prompt();
  *made.mutable_first() = task.first();
  *made.mutable_second() = task.second();
  made.set_preference(answer.preference());
  if (!answer.written().empty()) made.mutable_second()->set_text(answer.written());
  if (made.kind() == v1::FEEDBACK_EDIT) {
    made.mutable_second()->set_source("edited");
    made.set_preference(v1::SECOND);
  }
  made.set_strength(answer.strength());
  *made.mutable_first_ratings() = answer.first_ratings();
  *made.mutable_second_ratings() = answer.second_ratings();
  made.set_comment(answer.comment());
  made.set_rater(rater);
  made.set_rater_group(answer.rater_group());
  *made.mutable_created_at() = ToTimestamp(at);
  *made.mutable_tags() = answer.tags();
  if (made.kind() == v1::FEEDBACK_COMPARISON && answer.written().empty())
    made.set_second_shown_first(answer.second_shown_first());

  taken.fresh = true;
  Restore(made);
  entry.held_by.erase(rater);
  if (!task.planted() && static_cast<int>(entry.answered_by.size()) >= overlap()) {
    entry.task.set_state(v1::TASK_ANSWERED);
    entry.task.set_rater(rater);
    ++answered_;
    taken.task_changed = true;
    taken.task = entry.task;
  }
  return taken;
}

absl::Status CollectQueue::Skip(const std::string& rater, const std::string& task_id, v1::FeedbackTask* changed) {
  const auto it = tasks_.find(task_id);
  if (it == tasks_.end()) return absl::NotFoundError(absl::StrCat("no task ", task_id, " in this job"));
  Entry& entry = it->second;
  if (entry.held_by.erase(rater) == 0)
    return absl::FailedPreconditionError("this task is not handed to you (any more)");
  entry.task.add_skipped_by(rater);
  const int most = spec_.has_max_skips() ? spec_.max_skips() : 1;
  if (!entry.task.planted() && entry.task.skipped_by_size() >= most) {
    entry.task.set_state(v1::TASK_SKIPPED);
    ++skipped_;
  }
  *changed = entry.task;
  return absl::OkStatus();
}

void CollectQueue::AddCounts(const std::string& rater, v1::NextTasksResponse* response) const {
  response->set_answered(answered_);
  response->set_wanted(wanted());
  if (const auto it = raters_.find(rater); it != raters_.end())
    response->set_mine(it->second.answered + it->second.planted);
}

v1::GetFeedbackStatsResponse CollectQueue::Stats() const {
  v1::GetFeedbackStatsResponse stats;
  for (const std::string& id : order_) {
    const Entry& entry = tasks_.at(id);
    if (entry.task.state() != v1::TASK_OPEN) continue;
    if (entry.held_by.empty())
      stats.set_open(stats.open() + 1);
    else
      stats.set_handed_out(stats.handed_out() + 1);
  }
  stats.set_answered(answered_);
  stats.set_skipped(skipped_);
  stats.set_expired(expired_);
  stats.set_planted(planted_answers_);
  stats.set_wanted(wanted());
  for (const auto& [rater, counts] : raters_) {
    if (counts.answered + counts.planted > 0) (*stats.mutable_by_rater())[rater] = counts.answered + counts.planted;
  }
  stats.mutable_by_kind()->insert(by_kind_.begin(), by_kind_.end());
  return stats;
}

}  // namespace rlhf::coordinator
