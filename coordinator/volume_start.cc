#include "coordinator/volume_start.h"

#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/volume_watch.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kAskStopEvery = absl::Milliseconds(250);
constexpr absl::Duration kAnswersWithin = absl::Seconds(5);  // or it is said

// Does what touches a volume on a thread of its own, which is left behind where nobody waits for it any more.
std::shared_ptr<const absl::Notification> DoBeside(std::function<void()> work) {
  auto over = std::make_shared<absl::Notification>();
  std::thread([over, work = std::move(work)] {
    work();
    over->Notify();
  }).detach();
  return over;
}

// The work's status; Cancelled when the process is to end meanwhile. `hangs` is called once where the volume does not
// answer.
absl::Status OnceItAnswers(const std::string& whose, const std::function<bool()>& stop,
                           std::function<absl::Status()> work, const std::function<void()>& hangs) {
  const auto status = std::make_shared<absl::Status>();
  const auto over = DoBeside([status, work = std::move(work)] { *status = work(); });
  const absl::Duration began = Clock::Real()->Now();
  bool said = false;
  while (!over->WaitForNotificationWithTimeout(kAskStopEvery)) {
    if (stop && stop())
      return absl::CancelledError(absl::StrCat("it was asked to stop while the ", whose, " volume did not answer"));
    if (Clock::Real()->Now() - began < kAnswersWithin || std::exchange(said, true)) continue;
    hangs();
  }
  if (said) spdlog::info("the {} volume answers", whose);
  return *status;
}

}  // namespace

bool Answers(const std::string& folder, absl::Duration patience) {
  return DoBeside([folder] { (void)RoomOf(folder); })->WaitForNotificationWithTimeout(patience);
}

absl::StatusOr<std::unique_ptr<DataDirLock>> TakeDataDir(const std::string& data_dir, bool shared,
                                                         const std::function<bool()>& stop) {
  const auto lock = std::make_shared<std::unique_ptr<DataDirLock>>();
  const auto take = [lock, data_dir, shared]() -> absl::Status {
    // Its own folder is the owner's alone; those above may hold what others share.
    std::filesystem::path folder = std::filesystem::absolute(data_dir).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path();  // written with a "/" at its end
    RLHF_RETURN_IF_ERROR(MakeDirs(folder.parent_path().string()));
    RLHF_RETURN_IF_ERROR(MakeDirs(data_dir, 0700));
    RLHF_ASSIGN_OR_RETURN(*lock, DataDirLock::Take(data_dir, shared));
    return absl::OkStatus();
  };
  RLHF_RETURN_IF_ERROR(OnceItAnswers("data folder's", stop, take, [&data_dir] {
    spdlog::warn("waiting for the data folder's volume: it does not answer (--data-dir {})", data_dir);
  }));
  return std::move(*lock);
}

absl::Status MakeArtifactRoot(const std::string& root, const std::function<bool()>& stop,
                              const std::function<void()>& hangs) {
  return OnceItAnswers(
      "artifacts'", stop, [root] { return MakeDirs(root, kGroupFolder); }, hangs);
}

}  // namespace rlhf::coordinator
