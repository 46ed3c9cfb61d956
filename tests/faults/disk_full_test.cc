// A small tmpfs as the coordinator's disk: jobs pause with the reason before it is full, nothing is lost when it fills
// at once, and everything goes on by itself when there is room.
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

class DiskFull : public testing::Test {
 protected:
  void SetUp() override {
    LocalServiceOptions options;
    options.faults = true;
    options.prepare = [this](const std::string& dir) {
      data_ = dir + "/data";
      ASSERT_TRUE(MakeDirs(data_).ok());
      mounted_ = mount("none", data_.c_str(), "tmpfs", 0, "size=160m") == 0;
      why_ = std::strerror(errno);
    };
    service_ = std::make_unique<LocalService>(options);
    if (!mounted_) GTEST_SKIP() << "needs the right to mount a tmpfs: " << why_;
    MakeSmallModel(service_->scratch().path());
    job_.steps = kOutlastsAKill;
    ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(*service_, job_));
    LocalService::Until(
        absl::Seconds(60), [&] { return service_->StepOf(job_.name) >= 2; }, "it trains");
  }
  void TearDown() override {
    service_.reset();
    if (mounted_) umount2(data_.c_str(), MNT_DETACH);
  }
  // Writes until so many megabytes are left; 0: until nothing more fits.
  void FillUpTo(int megabytes_left) {
    std::ofstream file(data_ + "/filler", std::ios::binary);
    const std::string block(1 << 16, 'x');
    const auto left = [&] { return std::filesystem::space(data_).available; };
    while (file.good() && left() > (static_cast<uint64_t>(megabytes_left) << 20)) file << block << std::flush;
  }
  void Free() { std::filesystem::remove(data_ + "/filler"); }
  void Finish() {
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job_);
    ExpectExactReplay(*service_, job_);
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
  std::string data_, why_;
  bool mounted_ = false;
};

TEST_F(DiskFull, JobsPauseWithTheReasonAndGoOnWhenThereIsRoom) {
  FillUpTo(20);
  LocalService::Until(
      absl::Seconds(20), [&] { return service_->StateOf(job_.name) == "PAUSED"; }, "the job is paused");
  EXPECT_THAT(service_->Job(job_.name).dump(), HasSubstr("DISK_FULL"));
  EXPECT_THAT(service_->Ctl("why " + job_.name).output, HasSubstr("free the disk"));
  const int64_t step = service_->StepOf(job_.name);
  absl::SleepFor(absl::Seconds(2));
  EXPECT_LE(service_->StepOf(job_.name), step + 1);  // a step that was complete may still be committed
  Free();
  LocalService::Until(
      absl::Seconds(20), [&] { return service_->StateOf(job_.name) == "RUNNING"; }, "it goes on");
  Finish();
}

TEST_F(DiskFull, ADiskThatFillsAtOnceLosesNothingThatWasAcknowledged) {
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Job(job_.name).value("checkpoint", "") != ""; },
      "there is a checkpoint");
  FillUpTo(0);
  LocalService::Until(
      absl::Seconds(30),
      [&] {
        const std::string log = service_->Log("coordinator");
        return log.find("the state store failed") != std::string::npos || log.find("jobs pause") != std::string::npos;
      },
      "the coordinator meets the full disk");
  absl::SleepFor(absl::Seconds(3));  // time to try in vain
  Free();
  // Nobody holds the weights any more: the job goes on from the checkpoint that it had.
  for (const pid_t learner : service_->Pids("rlhf-learner")) kill(learner, SIGKILL);
  Finish();
}

}  // namespace
}  // namespace rlhf
