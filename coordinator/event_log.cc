#include "coordinator/event_log.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

std::string PrefixOf(const std::string& job_id) {
  return absl::StrCat(job_id, "/");
}

class EventLogImpl final : public EventLog {
 public:
  EventLogImpl(StateStore* store, EventLoop* loop) : store_(store), loop_(loop) {}

  void Append(const std::string& job_id, v1::JobEvent event, WriteBatch* batch) override {
    int64_t& last = Last(job_id);
    event.set_job_id(job_id);
    event.set_sequence(++last);
    *event.mutable_at() = ToTimestamp(loop_->clock().WallNow());
    batch->Put(Table::kEvents, KeyOf(PrefixOf(job_id), {static_cast<uint64_t>(last)}), event.SerializeAsString());
  }

  void Published(const std::string& job_id) override {
    // A waker may watch or unwatch.
    std::vector<int64_t> handles;
    for (const auto& [handle, watcher] : watchers_) {
      if (watcher.first == job_id) handles.push_back(handle);
    }
    for (const int64_t handle : handles) {
      if (const auto it = watchers_.find(handle); it != watchers_.end()) {
        const std::function<void()> wake = it->second.second;
        wake();
      }
    }
  }

  absl::StatusOr<std::vector<v1::JobEvent>> Read(const std::string& job_id, int64_t from, int limit) override {
    std::vector<v1::JobEvent> events;
    const std::string prefix = PrefixOf(job_id);
    const std::string after = from <= 0 ? std::string() : KeyOf(prefix, {static_cast<uint64_t>(from)});
    RLHF_RETURN_IF_ERROR(
        store_->ScanAfter(Table::kEvents, prefix, after, [&](absl::string_view, absl::string_view value) {
          events.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()));
          return static_cast<int>(events.size()) < limit;
        }));
    return events;
  }

  int64_t LastSequence(const std::string& job_id) override { return Last(job_id); }

  int64_t Watch(const std::string& job_id, std::function<void()> wake) override {
    watchers_.emplace(++next_handle_, std::pair(job_id, std::move(wake)));
    return next_handle_;
  }
  void Unwatch(int64_t handle) override { watchers_.erase(handle); }

 private:
  int64_t& Last(const std::string& job_id) {
    const auto inserted = last_.try_emplace(job_id, 0);
    int64_t& last = inserted.first->second;
    if (inserted.second) {
      const std::string prefix = PrefixOf(job_id);
      const absl::StatusOr<std::string> key = store_->LastKey(Table::kEvents, prefix);
      if (key.ok()) {
        for (const char c : key->substr(prefix.size())) last = last << 8 | static_cast<uint8_t>(c);
      } else if (!absl::IsNotFound(key.status())) {
        const LogScope scope({.job_id = job_id});
        spdlog::error("events of {}: {}", job_id, std::string(key.status().message()));
      }
    }
    return last;
  }

  StateStore* const store_;
  EventLoop* const loop_;
  std::map<std::string, int64_t> last_;  // appended, not necessarily durable
  std::map<int64_t, std::pair<std::string, std::function<void()>>> watchers_;
  int64_t next_handle_ = 0;
};

}  // namespace

std::unique_ptr<EventLog> MakeEventLog(StateStore* store, EventLoop* loop) {
  return std::make_unique<EventLogImpl>(store, loop);
}

}  // namespace rlhf::coordinator
