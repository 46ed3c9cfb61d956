#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/end_by.h"
#include "common/failpoint.h"
#include "common/file_parts.h"
#include "common/printable.h"
#include "common/process.h"
#include "common/stuck_watch.h"
#include "tests/testing/fake_clock.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(ClockTest, RealTimeGoesForward) {
  const absl::Duration first = Clock::Real()->Now();
  EXPECT_GE(Clock::Real()->Now(), first);
  EXPECT_GT(Clock::Real()->WallNow(), absl::FromUnixSeconds(1'600'000'000));
}

TEST(ClockTest, FakeTimeStandsStillUntilAdvanced) {
  FakeClock clock;
  const absl::Duration start = clock.Now();
  const absl::Time wall = clock.WallNow();
  EXPECT_EQ(clock.Now(), start);
  clock.Advance(absl::Seconds(3));
  EXPECT_EQ(clock.Now() - start, absl::Seconds(3));
  EXPECT_EQ(clock.WallNow() - wall, absl::Seconds(3));
}

TEST(MakeDirsTest, AGroupWritesOnlyWhereItIsMeantTo) {
  const ScratchDir dir;
  const auto mode = [&](const char* folder) {
    struct stat info {};
    EXPECT_EQ(stat(dir.File(folder).c_str(), &info), 0) << folder;
    return info.st_mode & 0777;
  };
  const mode_t before = umask(0007);
  const absl::Status shared = MakeDirs(dir.File("shared/by/a_group"), kGroupFolder);
  const absl::Status own = MakeDirs(dir.File("own/keys"));
  umask(0);
  const absl::Status open = MakeDirs(dir.File("open/keys"));
  umask(before);
  ASSERT_TRUE(shared.ok() && own.ok() && open.ok()) << shared << own << open;
  for (const char* folder : {"shared", "shared/by", "shared/by/a_group"}) EXPECT_EQ(mode(folder), 0770u) << folder;
  for (const char* folder : {"own", "own/keys"}) EXPECT_EQ(mode(folder), 0750u) << folder;
  for (const char* folder : {"open", "open/keys"}) EXPECT_EQ(mode(folder), 0755u) << folder;
}

TEST(BoundedQueueTest, KeepsOrderAndBound) {
  BoundedQueue<int> queue(2);
  EXPECT_TRUE(queue.TryPush(1));
  EXPECT_TRUE(queue.TryPush(2));
  EXPECT_FALSE(queue.TryPush(3));
  EXPECT_EQ(queue.Pop(), 1);
  EXPECT_EQ(queue.Pop(), 2);
  EXPECT_EQ(queue.Pop(absl::ZeroDuration()), std::nullopt);
}

TEST(BoundedQueueTest, PushWaitsForRoomAndCloseDeliversTheRest) {
  BoundedQueue<int> queue(1);
  std::thread producer([&queue] {
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(queue.Push(i));
    queue.Close();
    EXPECT_FALSE(queue.Push(100));
  });
  std::vector<int> received;
  while (const std::optional<int> item = queue.Pop()) received.push_back(*item);
  producer.join();
  ASSERT_EQ(received.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(received[i], i);
}

TEST(BoundedQueueTest, CloseWakesAWaitingProducer) {
  BoundedQueue<int> queue(1);
  ASSERT_TRUE(queue.Push(1));
  bool pushed = true;
  std::thread producer([&] { pushed = queue.Push(2); });
  queue.Close();
  producer.join();
  EXPECT_FALSE(pushed);
}

TEST(DurableFileTest, WritesAndReplacesWithoutLeftovers) {
  const ScratchDir dir;
  const std::string path = dir.File("state");
  ASSERT_TRUE(WriteFileDurably(path, "first").ok());
  const std::string binary("a\0b\n", 4);
  ASSERT_TRUE(WriteFileDurably(path, binary).ok());
  EXPECT_EQ(*ReadFile(path), binary);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) names.push_back(entry.path().filename());
  EXPECT_THAT(names, ElementsAre("state"));
}

TEST(DurableFileTest, PartsAreJoined) {
  const ScratchDir dir;
  // More than one call of writev takes, empty ones among them.
  std::vector<std::string> texts;
  std::string whole;
  for (int i = 0; i < 3000; ++i)
    whole += texts.emplace_back(i % 7 == 0 ? 0 : static_cast<size_t>(i % 90), 'a' + i % 26);
  const std::vector<absl::string_view> parts(texts.begin(), texts.end());
  for (const Durability durability : {Durability::kSynced, Durability::kCached}) {
    ASSERT_TRUE(WriteFileDurably(dir.File("file"), "old").ok());
    ASSERT_TRUE(WriteFileParts(dir.File("file"), parts, durability).ok());
    EXPECT_EQ(*ReadFile(dir.File("file")), whole);
  }
  ASSERT_TRUE(WriteFileParts(dir.File("none"), {}, Durability::kCached).ok());
  EXPECT_EQ(*ReadFile(dir.File("none")), "");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 2);
  const absl::Status failed = WriteFileParts(dir.File("no/such/file"), parts, Durability::kCached);
  EXPECT_THAT(std::string(failed.message()), HasSubstr(dir.File("no/such/file")));
}

TEST(DurableFileTest, ErrorsNameThePath) {
  const ScratchDir dir;
  const auto missing = ReadFile(dir.File("missing"));
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(dir.File("missing")));

  const absl::Status no_folder = WriteFileDurably(dir.File("no/such/file"), "x");
  EXPECT_FALSE(no_folder.ok());
  EXPECT_THAT(std::string(no_folder.message()), HasSubstr(dir.File("no/such/file")));
}

TEST(DurableFileTest, AVolumeThatTakesNothingSaysWhy) {
  const absl::Status full = WriteError(ENOSPC, "write", "/a/file");
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(full.message(), "cannot write /a/file: its volume is full; make room and try again");
  EXPECT_EQ(WriteError(EDQUOT, "write", "/a/file").code(), absl::StatusCode::kResourceExhausted);
  const absl::Status read_only = WriteError(EROFS, "create", "/a/file");
  EXPECT_EQ(read_only.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(read_only.message(), "cannot create /a/file: its volume is read-only; make it writable and try again");
  EXPECT_EQ(WriteError(EACCES, "create", "/a/file").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(IsFullOrReadOnly(EDQUOT));
  EXPECT_FALSE(IsFullOrReadOnly(EIO));
}

TEST(DurableFileTest, AFailedWriteLeavesTheOldContent) {
  const ScratchDir dir;
  ASSERT_TRUE(MakeDirs(dir.File("target")).ok());
  // A folder cannot be replaced by a file: the rename fails after the temporary file was written.
  EXPECT_FALSE(WriteFileDurably(dir.File("target"), "x").ok());
  EXPECT_TRUE(std::filesystem::is_directory(dir.File("target")));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

TEST(DurableFileTest, MakesFoldersAtAnyDepthAndTwice) {
  const ScratchDir dir;
  ASSERT_TRUE(MakeDirs(dir.File("a/b/c")).ok());
  ASSERT_TRUE(MakeDirs(dir.File("a/b/c/")).ok());
  EXPECT_TRUE(std::filesystem::is_directory(dir.File("a/b/c")));
  EXPECT_TRUE(FsyncDir(dir.File("a/b")).ok());
  ASSERT_TRUE(WriteFileDurably(dir.File("file"), "").ok());
  EXPECT_FALSE(MakeDirs(dir.File("file/below")).ok());
  EXPECT_FALSE(MakeDirs("").ok());
}

TEST(ProcessTest, PortsFileIsJson) {
  const ScratchDir dir;
  ASSERT_TRUE(WritePortsFile(dir.File("ports"), {{"api", 1234}, {"fleet", 5678}}).ok());
  const auto ports = nlohmann::json::parse(*ReadFile(dir.File("ports")));
  EXPECT_EQ(ports["pid"], getpid());
  EXPECT_EQ(ports["api"], 1234);
  EXPECT_EQ(ports["fleet"], 5678);
}

TEST(ProcessTest, WaitsForASignalOrForDone) {
  BeginProcess();
  EXPECT_EQ(WaitForTermination([] { return true; }), 0);
  kill(getpid(), SIGTERM);
  EXPECT_EQ(WaitForTermination({}), SIGTERM);
  struct sigaction pipe {};
  ASSERT_EQ(sigaction(SIGPIPE, nullptr, &pipe), 0);
  EXPECT_EQ(pipe.sa_handler, SIG_IGN) << "a reader that goes away ends nobody";
}

// A container runtime's limits: low, and what it may be raised to. In a child, for a limit that was lowered stays so.
TEST(ProcessTest, TakesTheDescriptorsThatItMayHave) {
  const auto soft_after = [](rlim_t soft, rlim_t hard) {
    int reported[2];
    EXPECT_EQ(pipe(reported), 0);
    const pid_t child = fork();
    if (child == 0) {
      rlimit limit{soft, hard};
      if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(1);
      BeginProcess();
      if (getrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(2);
      _exit(write(reported[1], &limit.rlim_cur, sizeof(limit.rlim_cur)) == sizeof(limit.rlim_cur) ? 0 : 3);
    }
    close(reported[1]);
    rlim_t found = 0;
    EXPECT_EQ(read(reported[0], &found, sizeof(found)), static_cast<ssize_t>(sizeof(found)));
    close(reported[0]);
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    return found;
  };
  rlimit own{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &own), 0);
  EXPECT_EQ(soft_after(256, 2048), 2048u);
  EXPECT_EQ(soft_after(2048, 2048), 2048u);
  if (own.rlim_max >= 131072) {
    EXPECT_EQ(soft_after(131072, 131072), 131072u) << "more than it asks for is not taken away";
  }
  EXPECT_EQ(soft_after(1024, own.rlim_max), std::max<rlim_t>(1024, std::min<rlim_t>(own.rlim_max, 65536)));
}

TEST(EndByTest, AProcessThatWaitsForWhatDoesNotComeEndsOnceThereIsAReason) {
  for (const bool reason : {true, false}) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int asked = 0;
      const EndBy end_by(absl::Milliseconds(100), 7, [&] { return ++asked > 1 && reason ? "it hangs" : ""; });
      absl::SleepFor(reason ? absl::Seconds(60) : absl::Seconds(2));
      _exit(3);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), reason ? 7 : 3);
  }
  const EndBy over(absl::Hours(1), 7, [] { return "never"; });
}

TEST(PrintableTest, ControlCharactersAreEscapedAndTextsAreNot) {
  EXPECT_EQ(Printable("Grüße, 你好 \xf0\x9f\x90\xb6 \xff"), "Grüße, 你好 \xf0\x9f\x90\xb6 \xff");
  EXPECT_EQ(Printable("a\r\n\tb\x1b]0;x\x07\x7f"), "a\\x0d\\n\\tb\\x1b]0;x\\x07\\x7f");
  EXPECT_EQ(Printable("a\n\tb\r", /*keep_lines=*/true), "a\n\tb\\x0d");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "31m \xe2\x80\xae \xe2\x81\xa6 \xe2\x80\x93"),
            "\\u009b31m \\u202e \\u2066 \xe2\x80\x93");
  EXPECT_EQ(Printable(absl::string_view("\0\xc2", 2)), "\\x00\xc2");
}

class FailpointTest : public testing::Test {
 protected:
  FailpointTest() { UseFailpointsOf(dir_.path(), "learner-0"); }
  ~FailpointTest() override { UseFailpointsOf("", ""); }
  void Arm(const std::string& who, const std::string& name, const std::string& action) {
    ASSERT_TRUE(MakeDirs(dir_.File(who)).ok());
    ASSERT_TRUE(WriteFileDurably(dir_.File(who + "/" + name), action).ok());
  }
  ScratchDir dir_;
};

TEST_F(FailpointTest, FiresOnceAtItsPassInItsProcess) {
  EXPECT_TRUE(HitFailpoint("store/write").ok());
  Arm("learner-0", "store.write", "error@2");
  Arm("learner-1", "other", "error");
  EXPECT_TRUE(HitFailpoint("store/write").ok());
  EXPECT_TRUE(absl::IsUnavailable(HitFailpoint("store/write")));
  EXPECT_TRUE(HitFailpoint("store/write").ok());
  EXPECT_TRUE(HitFailpoint("other").ok());  // armed for another process
  EXPECT_TRUE(std::filesystem::exists(dir_.File("learner-0/store.write.fired")));
  Arm("any", "store.write", "sleep:0");
  EXPECT_TRUE(HitFailpoint("store/write").ok());
  EXPECT_TRUE(std::filesystem::exists(dir_.File("any/store.write.fired")));
}

TEST_F(FailpointTest, AStarFiresUntilItsFileIsGone) {
  Arm("any", "here", "error*");
  EXPECT_FALSE(HitFailpoint("here").ok());
  EXPECT_FALSE(HitFailpoint("here").ok());
  std::filesystem::remove(dir_.File("any/here"));
  EXPECT_TRUE(HitFailpoint("here").ok());
}

TEST_F(FailpointTest, EndsTheProcessOnWhatItDoesNotKnow) {
  Arm("any", "here", "explode");
  EXPECT_DEATH(static_cast<void>(HitFailpoint("here")), "");
}

TEST_F(FailpointTest, KillKills) {
  Arm("any", "here", "kill");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    static_cast<void>(HitFailpoint("here"));
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_TRUE(HitFailpoint("here").ok());  // the one that fired was the only one
}

TEST(StuckWatchTest, OnlyAPieceOfWorkThatDoesNotMoveIsStuck) {
  FakeClock clock;
  StuckWatch watch(absl::Seconds(10), &clock);
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(watch.StuckBecause(), "") << "it has nothing to do";
  watch.Moved();
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(watch.StuckBecause(), "") << "that was no piece of work";
  {
    const StuckWatch::Work work(&watch);
    clock.Advance(absl::Seconds(10));
    watch.Moved();
    clock.Advance(absl::Seconds(10));
    EXPECT_EQ(watch.StuckBecause(), "");
    clock.Advance(absl::Seconds(1));
    EXPECT_THAT(watch.StuckBecause(), HasSubstr("has stood still for 11 s"));
    std::thread([] { StuckWatch::MovedHere(); }).join();
    EXPECT_NE(watch.StuckBecause(), "") << "that thread works on nothing";
    StuckWatch::MovedHere();
    EXPECT_EQ(watch.StuckBecause(), "");
    {
      const StuckWatch::Wait wait;
      clock.Advance(absl::Hours(1));
      EXPECT_EQ(watch.StuckBecause(), "") << "what it waits for has a watch of its own";
    }
    clock.Advance(absl::Seconds(11));
    EXPECT_NE(watch.StuckBecause(), "");
  }
  EXPECT_EQ(watch.StuckBecause(), "");
  StuckWatch never(absl::ZeroDuration(), &clock);
  const StuckWatch::Work work(&never);
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(never.StuckBecause(), "");
}

}  // namespace
}  // namespace rlhf
