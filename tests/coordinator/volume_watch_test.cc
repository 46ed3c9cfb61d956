// What the coordinator says of volumes that it cannot use.
#include "coordinator/volume_watch.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "common/durable_file.h"
#include "common/metrics.h"
#include "coordinator/jobs.h"
#include "tests/testing/fake_clock.h"
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
    VolumeWatch watch({{"artifacts", folder}}, /*min_free_mb=*/0, &metrics, Clock::Real(),
                      [&](const VolumeTrouble& trouble) {
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
    VolumeWatch watch({{"data", dir.path()}, {"artifacts", dir.path()}}, /*min_free_mb=*/0, &metrics, Clock::Real(),
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

// Of a look that hangs until it is let go.
class HangingVolume : public testing::Test {
 protected:
  HangingVolume()
      : watch_({{"data", data_.path()}, {"artifacts", artifacts_.path()}}, /*min_free_mb=*/0, &metrics_, &clock_,
               [this](const VolumeTrouble& trouble) {
                 absl::MutexLock lock(&mu_);
                 told_.push_back(trouble);
                 ++tells_;
               }) {}
  ~HangingVolume() override { SetHangs(false); }
  void SetHangs(bool hangs) {
    absl::MutexLock lock(&mu_);
    hangs_ = hangs;
  }
  // As the loop does; the look at the other volume is over when it returns.
  void Look(absl::Duration passed) {
    clock_.Advance(passed);
    watch_.Look([this] {
      absl::MutexLock lock(&mu_);
      ++looks_;
      mu_.Await(absl::Condition(
          +[](HangingVolume* self) { return !self->hangs_; }, this));
      return true;
    });
  }
  // Waits for the other volume's look, so that it never hangs by this clock; of a watch that has looked at both.
  void LookAndSeeTheOther(absl::Duration passed) {
    int wanted = 1;
    {
      absl::MutexLock lock(&mu_);
      wanted += tells_;
    }
    Look(passed);
    if (!watch_.Hanging().empty()) ++wanted;
    absl::MutexLock lock(&mu_);
    wanted_tells_ = wanted;
    ASSERT_TRUE(
        mu_.AwaitWithTimeout(absl::Condition(
                                 +[](HangingVolume* self) { return self->tells_ >= self->wanted_tells_; }, this),
                             absl::Seconds(30)));
  }
  std::string TakeCode() {
    absl::MutexLock lock(&mu_);
    const std::string code = told_.empty() ? "nothing" : told_.back().code;
    told_.clear();
    return code;
  }
  // Whether the look that goes on ends with this told.
  bool Tells(const std::string& code) {
    absl::MutexLock lock(&mu_);
    wanted_ = code;
    return mu_.AwaitWithTimeout(
        absl::Condition(
            +[](HangingVolume* self) { return !self->told_.empty() && self->told_.back().code == self->wanted_; },
            this),
        absl::Seconds(30));
  }
  double Unanswered() {
    const std::string text = metrics_.Text(), series = "rlhf_volume_unanswered_seconds{volume=\"artifacts\"} ";
    const size_t at = text.find(series);
    return at == std::string::npos ? -1 : std::atof(text.c_str() + at + series.size());
  }

  const ScratchDir data_, artifacts_;
  MetricsRegistry metrics_{"test"};
  FakeClock clock_;
  absl::Mutex mu_;
  bool hangs_ = false;
  int looks_ = 0, tells_ = 0, wanted_tells_ = 0;
  std::string wanted_;
  std::vector<VolumeTrouble> told_;
  VolumeWatch watch_;
};

TEST_F(HangingVolume, OneThatDoesNotAnswerIsSaidToHangUntilItAnswers) {
  Look(absl::ZeroDuration());
  ASSERT_TRUE(Tells(""));
  SetHangs(true);
  LookAndSeeTheOther(absl::Milliseconds(500));
  for (int i = 0; i < 19; ++i) LookAndSeeTheOther(absl::Milliseconds(500));
  EXPECT_EQ(watch_.Hanging(), "");
  EXPECT_NE(TakeCode(), kDiskHangs);
  EXPECT_DOUBLE_EQ(Unanswered(), 9.5);
  LookAndSeeTheOther(absl::Milliseconds(500));
  EXPECT_TRUE(Tells(kDiskHangs));
  EXPECT_EQ(watch_.Hanging(), artifacts_.path());
  // What the other volume's looks find tells nobody to go on.
  for (int i = 0; i < 20; ++i) LookAndSeeTheOther(absl::Milliseconds(500));
  {
    absl::MutexLock lock(&mu_);
    bool hung = false;
    for (const VolumeTrouble& each : told_) {
      hung = hung || each.code == kDiskHangs;
      EXPECT_TRUE(!hung || each.code == kDiskHangs) << each.code;
    }
    EXPECT_LE(looks_, 2);  // no second one behind it
  }
  SetHangs(false);
  EXPECT_TRUE(Tells(""));
  EXPECT_EQ(watch_.Hanging(), "");
  EXPECT_EQ(Unanswered(), 0);
}

TEST_F(HangingVolume, NothingIsTakenForGoodBeforeItWasLookedAt) {
  SetHangs(true);
  Look(absl::ZeroDuration());
  // The other one's look is over, with nothing wrong, at the next that begins.
  for (int i = 0; i < 10; ++i) Look(absl::Milliseconds(500));
  EXPECT_EQ(TakeCode(), "nothing");
}

TEST_F(HangingVolume, AProcessThatStoodStillTakesNoVolumeForHanging) {
  SetHangs(true);
  Look(absl::ZeroDuration());
  Look(absl::Minutes(10));
  EXPECT_EQ(watch_.Hanging(), "");
}

}  // namespace
}  // namespace rlhf::coordinator
