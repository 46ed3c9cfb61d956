// The tasks of one collect job: who holds which, who may answer, what is finished. Pure logic without store and clock;
// times are passed in. Not thread-safe.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rlhf/v1/feedback_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

class CollectQueue {
 public:
  CollectQueue(std::string project, v1::CollectSpec spec) : project_(std::move(project)), spec_(std::move(spec)) {}

  void Add(v1::FeedbackTask task);                 // new, or from its row
  void Restore(const v1::Comparison& comparison);  // an answer from its row; after its task was added

  // At most `most` tasks; fewer where they are long (PageLimit). First those that the rater has in hand, in the order
  // in which they were handed out, and anew for as long: whoever asks again has lost them, as by a reload. Then ones
  // that the rater has neither answered nor skipped. Tasks are handed to as many raters as the overlap asks for;
  // planted questions go to every rater, in their share. What would tell a planted question from others, or one
  // policy's answers from another's, is left out: ids and sources of samples; and, where there are planted questions,
  // the prompt's reference, category and tags unless all tasks have them.
  void HandOut(const std::string& rater, int most, absl::Duration now, v1::NextTasksResponse* response);
  void TakeBackLate(absl::Duration now);
  // Who holds what is not durable: until what was in hand at a restart would have been taken back, an answer to any
  // open task counts as one to a task in hand, so that no rater's work is lost.
  void Restarted(absl::Duration now);
  // Who holds and held which tasks, and which numbers were given to answers, from a queue of the same job that this one
  // replaces.
  void TakeOverHolders(const CollectQueue& replaced);
  // Tasks that nobody answered in time, all having been made when the job was opened, `age` ago; their rows are to be
  // written.
  std::vector<v1::FeedbackTask> Expire(absl::Duration age);

  // What an answer changes. `problem` is empty when it was accepted; then `comparison` is empty too if it was a
  // repetition of the rater's first answer, which counts.
  struct Taken {
    std::string problem;
    bool fresh = false;
    v1::Comparison comparison;
    bool task_changed = false;
    v1::FeedbackTask task;
  };
  // Only of a task that the rater holds or held (Restarted: or may have held): nobody picks what to judge.
  Taken Take(const std::string& rater, const v1::Answer& answer, absl::Time at);
  // NotFound, FailedPrecondition when the rater does not hold it. `changed` is the row to be written.
  absl::Status Skip(const std::string& rater, const std::string& task_id, v1::FeedbackTask* changed);

  void AddCounts(const std::string& rater, v1::NextTasksResponse* response) const;
  v1::GetFeedbackStatsResponse Stats() const;
  bool finished() const { return answered_ + skipped_ + expired_ >= wanted(); }
  const std::string& project() const { return project_; }
  int64_t wanted() const;

 private:
  struct Entry {
    v1::FeedbackTask task;
    std::set<std::string> answered_by;
    int next_number = 0;  // of an answer's id: above all there are, also where one before them was forgotten
    std::map<std::string, absl::Duration> held_by;  // until; not durable: a restart reopens what is in hand
    std::map<std::string, int64_t> handed_to;       // ever, as far as this process knows; the newest handing's number
  };
  struct RaterCounts {
    int64_t answered = 0, planted = 0;
  };

  int overlap() const { return spec_.overlap() < 1 ? 1 : spec_.overlap(); }
  absl::Duration HeldFor() const;
  bool MayGet(const std::string& rater, const Entry& entry) const;
  void Give(const std::string& rater, absl::Duration now, Entry* entry, v1::NextTasksResponse* response);
  std::vector<Entry*> InHand(const std::string& rater);  // in the order of their handing
  void Blind(v1::FeedbackTask* task) const;
  Entry* NextPlanted(const std::string& rater);
  static std::string ProblemOf(const v1::FeedbackTask& task, const v1::Answer& answer);

  const std::string project_;
  const v1::CollectSpec spec_;
  std::vector<std::string> order_, planted_;
  std::set<std::string> references_, categories_, tags_;  // what tasks have of them: "" or "set"; names of tags
  std::map<std::string, Entry> tasks_;
  std::optional<absl::Duration> any_may_be_in_hand_until_;
  int64_t handings_ = 0;
  std::map<std::string, RaterCounts> raters_;
  std::map<std::string, int64_t> by_kind_;
  int64_t answered_ = 0, skipped_ = 0, expired_ = 0;  // tasks that are not planted
  int64_t planted_answers_ = 0;
  size_t first_open_ = 0;  // into order_: everything before is finished
};

}  // namespace rlhf::coordinator
