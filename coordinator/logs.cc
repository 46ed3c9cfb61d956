#include "coordinator/logs.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/log_line.h"
#include "common/utf8_cut.h"

namespace rlhf::coordinator {
namespace {

constexpr const char* kLevels[] = {"debug", "info", "warn", "error"};

}  // namespace

absl::StatusOr<int> LogLevel(const std::string& name) {
  if (name.empty()) return 0;
  for (size_t i = 0; i < std::size(kLevels); ++i) {
    if (name == kLevels[i]) return static_cast<int>(i);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("level: expected debug, info, warn or error, found \"", name.substr(0, 40), "\""));
}

void Logs::Push(Ring* ring, const Entry& entry) {
  ring->push_back(entry);
  if (ring->size() > limits_.lines_per_job) ring->pop_front();
}

Logs::Ring* Logs::RingOf(const std::string& job_id) {
  const auto found = by_job_.find(job_id);
  if (found != by_job_.end()) {
    recency_.splice(recency_.begin(), recency_, found->second.used);
    return &found->second.ring;
  }
  if (by_job_.size() >= limits_.jobs) {
    by_job_.erase(recency_.back());
    recency_.pop_back();
  }
  recency_.push_front(job_id);
  JobRing& made = by_job_[job_id];
  made.used = recency_.begin();
  return &made.ring;
}

void Logs::Append(const std::string& instance_id, const std::string& role, const v1::AppendLogsRequest& request) {
  for (const v1::LogLine& given : request.lines()) {
    auto line = std::make_shared<v1::LogLine>();
    *line->mutable_at() = given.at();
    line->set_level(LogLevel(given.level()).ok() ? given.level() : "info");
    line->set_role(role);
    line->set_instance_id(instance_id);
    line->set_job_id(given.job_id().substr(0, 128));
    line->set_message(given.message().substr(0, Utf8Cut(given.message(), limits_.message_bytes)));
    for (const auto& [key, value] : given.fields()) {
      if (static_cast<size_t>(line->fields_size()) >= limits_.fields) break;
      if (key.size() > 64) continue;
      (*line->mutable_fields())[key] = value.substr(0, Utf8Cut(value, 256));
    }
    const Entry entry{++last_sequence_, std::move(line)};
    Push(&all_, entry);
    if (!entry.line->job_id().empty()) Push(RingOf(entry.line->job_id()), entry);
  }
  // A watcher may unwatch itself (or another) when woken.
  std::vector<int64_t> handles;
  for (const auto& [handle, wake] : watches_) handles.push_back(handle);
  for (const int64_t handle : handles) {
    if (const auto it = watches_.find(handle); it != watches_.end()) it->second();
  }
}

std::vector<Logs::Entry> Logs::Read(const std::string& job_id, int64_t sequence, int min_level, size_t limit,
                                    int64_t* scanned) const {
  std::vector<Entry> found;
  *scanned = sequence;
  const Ring* ring = &all_;
  if (!job_id.empty()) {
    const auto it = by_job_.find(job_id);
    if (it == by_job_.end()) return found;
    ring = &it->second.ring;
  }
  auto it = std::upper_bound(ring->begin(), ring->end(), sequence,
                             [](int64_t value, const Entry& entry) { return value < entry.sequence; });
  for (; it != ring->end() && found.size() < limit; ++it) {
    *scanned = it->sequence;
    if (*LogLevel(it->line->level()) >= min_level) found.push_back(*it);
  }
  return found;
}

OwnLines::OwnLines(EventLoop* loop, Logs* logs, std::string instance_id, size_t waiting)
    : loop_(loop),
      logs_(logs),
      instance_id_(std::move(instance_id)),
      most_(waiting),
      observer_(AddLogObserver([this](const LogRecord& record) { Take(record); })) {}
OwnLines::~OwnLines() {
  RemoveLogObserver(observer_);
}

void OwnLines::Take(const LogRecord& record) {
  if (record.context.job_id.empty()) return;
  {
    absl::MutexLock lock(&waiting_->mu);
    if (static_cast<size_t>(waiting_->lines.lines_size()) >= most_) {
      waiting_->lines.mutable_lines()->DeleteSubrange(0, 1);
      ++waiting_->dropped;
    }
    *waiting_->lines.add_lines() = LogLineOf(record);
    if (waiting_->posted) return;
    waiting_->posted = true;
  }
  loop_->Post([waiting = waiting_, logs = logs_, instance_id = instance_id_] {
    v1::AppendLogsRequest lines;
    int64_t dropped = 0;
    {
      absl::MutexLock lock(&waiting->mu);
      lines.Swap(&waiting->lines);
      dropped = std::exchange(waiting->dropped, 0);
      waiting->posted = false;
    }
    if (dropped > 0) {
      v1::LogLine* line = lines.add_lines();
      *line->mutable_at() = lines.lines(0).at();
      line->set_level("warn");
      line->set_message(absl::StrCat(dropped, " lines of the coordinator were dropped; its own log has them"));
    }
    logs->Append(instance_id, "coordinator", lines);
  });
}

int64_t Logs::Watch(std::function<void()> wake) {
  watches_.emplace(next_watch_, std::move(wake));
  return next_watch_++;
}
void Logs::Unwatch(int64_t handle) {
  watches_.erase(handle);
}

}  // namespace rlhf::coordinator
