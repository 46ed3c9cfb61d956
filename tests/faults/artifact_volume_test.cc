// A small tmpfs as the artifacts' volume, apart from the coordinator's data: full, read-only, and not mounted. Errors
// say which of them, older checkpoints stay whole, what is finished waits, and everything goes on by itself when it is
// mended.
#include <sys/mount.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class ArtifactVolume : public testing::Test {
 protected:
  // min_free_mb: 0 keeps the coordinator from pausing jobs before others meet the full volume.
  void Begin(int min_free_mb) {
    LocalServiceOptions options;
    options.faults = true;
    options.prepare = [this, min_free_mb](const std::string& dir) {
      volume_ = dir + "/artifacts";
      ASSERT_TRUE(MakeDirs(volume_).ok());
      mounted_ = mount("none", volume_.c_str(), "tmpfs", 0, "size=160m") == 0;
      why_ = std::strerror(errno);
      ASSERT_TRUE(WriteFileDurably(dir + "/coordinator.sh",
                                   absl::StrCat("#!/bin/sh\nexec \"$@\" --min-free-mb ", min_free_mb, "\n"))
                      .ok());
      ASSERT_EQ(chmod((dir + "/coordinator.sh").c_str(), 0755), 0);
    };
    service_ = std::make_unique<LocalService>(options, [](const std::string& dir) {
      return std::vector<std::string>{"--wrap", absl::StrCat("coordinator=", dir, "/coordinator.sh")};
    });
    if (!mounted_) GTEST_SKIP() << "needs the right to mount a tmpfs: " << why_;
    MakeSmallModel(service_->scratch().path());
    ASSERT_TRUE(WriteFileDurably(service_->scratch().File("new.bin"), std::string(8 << 20, 'n')).ok());
    job_.checkpoint_every = 2;
    ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(*service_, job_));
    LocalService::Until(
        absl::Seconds(60), [&] { return !Checkpoint().empty(); }, "it has a checkpoint");
  }
  void TearDown() override {
    service_.reset();
    if (mounted_) umount2(volume_.c_str(), MNT_DETACH);
  }
  std::string Checkpoint() const {
    const nlohmann::json job = service_->Job(job_.name);
    return job.is_object() ? job.value("checkpoint", "") : "";
  }
  CommandResult Upload() const { return service_->Ctl("data push " + service_->scratch().File("new.bin")); }
  void Fill() const {
    std::ofstream file(volume_ + "/filler", std::ios::binary);
    const std::string block(1 << 16, 'x');
    while (file.good()) file << block << std::flush;
  }
  void Free() const { std::filesystem::remove(volume_ + "/filler"); }
  bool Remount(bool read_only) const {
    return mount("none", volume_.c_str(), "tmpfs", MS_REMOUNT | (read_only ? MS_RDONLY : 0), "size=160m") == 0;
  }
  bool LearnersSay(const std::string& text) const {
    return (service_->Log("learner-0") + service_->Log("learner-1")).find(text) != std::string::npos;
  }
  void Succeeds(const std::string& name) const {
    LocalService::Until(
        absl::Seconds(90), [&] { return service_->StateOf(name) == "SUCCEEDED"; }, name + " succeeds");
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
  std::string volume_, why_;
  bool mounted_ = false;
};

TEST_F(ArtifactVolume, FullTrainingGoesOnAndWhatIsFinishedWaitsForRoom) {
  job_.steps = 60;  // it does not end before the volume is full
  Begin(/*min_free_mb=*/0);
  if (IsSkipped()) return;
  Fill();
  LocalService::Until(
      absl::Seconds(30), [&] { return LearnersSay("no checkpoint of step"); }, "a learner meets the full volume");
  const std::string checkpoint = Checkpoint();
  EXPECT_TRUE(LearnersSay("its volume is full")) << service_->Log("learner-0");

  const CommandResult upload = Upload();
  EXPECT_NE(upload.code, 0);
  EXPECT_THAT(upload.output, AllOf(HasSubstr("RESOURCE_EXHAUSTED"), HasSubstr("its volume is full")));

  // A job whose artifact the coordinator itself writes.
  const std::string drawn = service_->scratch().File("drawn.yaml");
  ASSERT_TRUE(WriteFileDurably(drawn,
                               "name: drawn\nsample:\n  model: file:model\n  prompts: file:prompts.jsonl\n"
                               "  num_prompts: 4\n  samples_per_prompt: 1\n  sampling: {max_new_tokens: 4}\n")
                  .ok());
  const CommandResult submitted = service_->Ctl("submit " + drawn);
  ASSERT_EQ(submitted.code, 0) << submitted.output;

  LocalService::Until(
      absl::Seconds(60), [&] { return LearnersSay("the model is not published yet"); }, "the model waits for room");
  EXPECT_EQ(service_->StateOf(job_.name), "RUNNING");
  EXPECT_EQ(service_->StepOf(job_.name), job_.steps);
  EXPECT_EQ(Checkpoint(), checkpoint);  // the one before stays
  LocalService::Until(
      absl::Seconds(60),
      [&] { return service_->Ctl("why drawn").output.find("the artifact volume: ") != std::string::npos; },
      "it says what the samples wait for");
  EXPECT_EQ(service_->StateOf("drawn"), "RUNNING");

  Free();
  Succeeds(job_.name);
  Succeeds("drawn");
  ExpectWhole(*service_, job_);
  EXPECT_EQ(service_->Ctl("ledger drawn --check").code, 0);
  const CommandResult again = Upload();
  EXPECT_EQ(again.code, 0) << again.output;
  for (const auto& left : std::filesystem::directory_iterator(volume_ + "/.staging"))
    ADD_FAILURE() << "a try in vain left " << left.path() << " on the volume";
}

TEST_F(ArtifactVolume, ReadOnlyJobsPauseWithTheReasonAndGoOnFromTheirCheckpoint) {
  job_.steps = 20;
  Begin(/*min_free_mb=*/1);
  if (IsSkipped()) return;
  // Busy while somebody writes.
  LocalService::Until(
      absl::Seconds(20), [&] { return Remount(/*read_only=*/true); }, "nobody writes to the volume");
  LocalService::Until(
      absl::Seconds(20), [&] { return service_->StateOf(job_.name) == "PAUSED"; }, "the job is paused");
  EXPECT_THAT(service_->Job(job_.name).dump(), HasSubstr("DISK_READ_ONLY"));
  EXPECT_THAT(service_->Ctl("why " + job_.name).output,
              AllOf(HasSubstr("is read-only"), HasSubstr("make the volume writable")));

  const CommandResult upload = Upload();
  EXPECT_NE(upload.code, 0);
  EXPECT_THAT(upload.output, AllOf(HasSubstr("FAILED_PRECONDITION"), HasSubstr("its volume is read-only")));

  // Who comes back finds the checkpoint whole; nobody holds newer weights.
  for (const char* learner : {"learner-0", "learner-1"}) {
    const pid_t pid = service_->Pid(learner);
    if (pid > 0) kill(pid, SIGKILL);
  }
  ASSERT_TRUE(Remount(/*read_only=*/false)) << std::strerror(errno);
  Succeeds(job_.name);
  ExpectWhole(*service_, job_);
  const CommandResult again = Upload();
  EXPECT_EQ(again.code, 0) << again.output;
}

TEST_F(ArtifactVolume, OneThatIsNotMountedFailsNoJob) {
  job_.steps = 20;
  Begin(/*min_free_mb=*/1);
  if (IsSkipped()) return;
  // What is seen of a mount point when its volume is gone.
  ASSERT_EQ(mount("none", volume_.c_str(), "tmpfs", 0, "size=16m"), 0) << std::strerror(errno);
  const auto kill_all = [&](std::initializer_list<const char*> instances) {
    for (const char* instance : instances) {
      const pid_t pid = service_->Pid(instance);
      if (pid > 0) kill(pid, SIGKILL);
    }
  };
  // At once, before anybody pauses: who starts again finds neither models nor checkpoints.
  kill_all({"reward-0", "rollout-0", "learner-0", "learner-1"});
  LocalService::Until(
      absl::Seconds(20), [&] { return service_->StateOf(job_.name) == "PAUSED"; }, "the job is paused");
  EXPECT_THAT(service_->Ctl("why " + job_.name).output, HasSubstr("is its volume mounted?"));
  const std::string before = service_->Log("coordinator");
  kill_all({"coordinator"});
  LocalService::Until(
      absl::Seconds(30),
      [&] { return service_->Log("coordinator").find("is its volume mounted?", before.size()) != std::string::npos; },
      "a coordinator that starts then sees it too");
  LocalService::Until(
      absl::Seconds(20), [&] { return service_->StateOf(job_.name) == "PAUSED"; }, "it is paused there, not failed");
  ASSERT_EQ(umount2(volume_.c_str(), MNT_DETACH), 0) << std::strerror(errno);
  Succeeds(job_.name);
  ExpectWhole(*service_, job_);
}

}  // namespace
}  // namespace rlhf
