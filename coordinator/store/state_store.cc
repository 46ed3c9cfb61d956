#include "coordinator/store/state_store.h"

#include "absl/synchronization/notification.h"
#include "common/status_util.h"

namespace rlhf::coordinator {

absl::Status StateStore::CommitAndWait(WriteBatch batch) {
  absl::Notification durable;
  absl::Status result;
  Commit(std::move(batch), [&](absl::Status status) {
    result = std::move(status);
    durable.Notify();
  });
  durable.WaitForNotification();
  return result;
}

absl::Status StateStore::ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                                   absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) {
  return Scan(table, prefix,
              [&](absl::string_view key, absl::string_view value) { return key <= after || fn(key, value); });
}

absl::StatusOr<std::string> StateStore::LastKey(Table table, absl::string_view prefix) {
  std::string last;
  bool any = false;
  RLHF_RETURN_IF_ERROR(Scan(table, prefix, [&](absl::string_view key, absl::string_view) {
    last = std::string(key);
    return any = true;
  }));
  if (!any) return absl::NotFoundError("no such row");
  return last;
}

absl::Status StateStore::BackUp(const std::string& path) {
  return absl::UnimplementedError("this store is not a file: back it up with the tools of its database");
}

std::string AfterPrefix(absl::string_view prefix) {
  // The prefix with its last byte that is not 255 grown by one.
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (!end.empty()) end.back() = static_cast<char>(end.back() + 1);
  return end;
}

std::string KeyOf(absl::string_view prefix, std::initializer_list<uint64_t> numbers) {
  std::string key(prefix);
  for (const uint64_t number : numbers) {
    for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(number >> shift));
  }
  return key;
}

}  // namespace rlhf::coordinator
