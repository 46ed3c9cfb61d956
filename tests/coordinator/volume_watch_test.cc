// What the coordinator says of volumes that it cannot use.
#include "coordinator/volume_watch.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "common/durable_file.h"
#include "common/metrics.h"
#include "coordinator/jobs.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uid_t kSomebody = 10001;

// Looked at by a process of that user and group.
std::string TroubleFor(uid_t user, gid_t group, const std::string& folder) {
  int said[2];
  EXPECT_EQ(pipe(said), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (setgid(group) != 0 || setuid(user) != 0) _exit(1);
    MetricsRegistry metrics("test");
    std::string text;
    absl::Notification looked;
    VolumeWatch watch({{"artifacts", folder}}, /*min_free_mb=*/0, &metrics, [&](const VolumeTrouble& trouble) {
      if (!trouble.why.empty()) text = trouble.code + ": " + trouble.why;
      looked.Notify();
    });
    watch.Look([] { return true; });
    looked.WaitForNotification();
    _exit(write(said[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 2);
  }
  close(said[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(said[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(said[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  return text;
}

TEST(VolumeWatchTest, AFolderOfSomebodyElseIsNamedWithWhatToDo) {
  if (geteuid() != 0) GTEST_SKIP() << "only root becomes another user";
  const ScratchDir dir;
  const std::string folder = dir.File("artifacts");
  ASSERT_EQ(chmod(dir.path().c_str(), 0755), 0);
  ASSERT_EQ(mkdir(folder.c_str(), 0755), 0);
  ASSERT_EQ(chmod(folder.c_str(), 0755), 0);  // whatever the umask
  EXPECT_THAT(TroubleFor(kSomebody, kSomebody, folder),
              AllOf(HasSubstr(std::string(kDiskReadOnly) + ": "),
                    HasSubstr("user 10001 of group 10001 may not write in " + folder),
                    HasSubstr("user 0 and group 0 with mode 0755"), HasSubstr("chown 10001:10001")));
  EXPECT_EQ(TroubleFor(0, 0, folder), "");
  // As a kubelet gives a volume to a pod's group.
  ASSERT_EQ(chown(folder.c_str(), 0, kSomebody), 0);
  ASSERT_EQ(chmod(folder.c_str(), 02775), 0);
  EXPECT_EQ(TroubleFor(kSomebody, kSomebody, folder), "");
}

TEST(VolumeWatchTest, ARootThatHoldsNothingOfWhatIsKnownIsOfAVolumeThatIsNotMounted) {
  const ScratchDir dir;
  MetricsRegistry metrics("test");
  VolumeTrouble found;
  const auto look = [&](bool there) {
    absl::Notification looked;
    VolumeWatch watch({{"data", dir.path()}, {"artifacts", dir.path()}}, /*min_free_mb=*/0, &metrics,
                      [&](const VolumeTrouble& trouble) {
                        found = trouble;
                        looked.Notify();
                      });
    watch.Look([there] { return there; });
    looked.WaitForNotification();
  };
  look(false);
  EXPECT_EQ(found.code, kDiskReadOnly);
  EXPECT_THAT(found.why, AllOf(HasSubstr(dir.path()), HasSubstr("is its volume mounted?")));
  look(true);
  EXPECT_EQ(found.why, "");
}

}  // namespace
}  // namespace rlhf::coordinator
