// The coordinator's disk after a loss of power: only what was fsynced is left (tests/faults/unsynced.cc). No
// acknowledged write may be missing, which a SIGKILL alone cannot show.
#include <sys/stat.h>

#include <fstream>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

class PowerLoss : public testing::Test {
 protected:
  void Start(const std::string& forget = "") {
    LocalServiceOptions options;
    options.faults = true;
    options.prepare = [&](const std::string& dir) {
      data_ = dir + "/data";
      shadow_ = dir + "/shadow";
      ASSERT_TRUE(MakeDirs(data_).ok());
      ASSERT_TRUE(MakeDirs(shadow_).ok());
    };
    // The folder's name is known only when the service is made.
    service_ = std::make_unique<LocalService>(options, [&](const std::string& dir) {
      return std::vector<std::string>{
          "--wrap", absl::StrCat("coordinator=LD_PRELOAD=", LocalService::FaultsBinDir(), "/librlhf_unsynced.so ",
                                 "UNSYNCED_ROOT=", dir, "/data UNSYNCED_SHADOW=", dir, "/shadow",
                                 forget.empty() ? "" : " UNSYNCED_FORGET=" + forget)};
    });
    MakeSmallModel(service_->scratch().path());
    job_.steps = 40;
    const CommandResult submitted = service_->Ctl("submit " + WriteSmallJob(service_->scratch().path(), job_));
    ASSERT_EQ(submitted.code, 0) << submitted.output;
  }
  void WaitForStep(int64_t step) {
    LocalService::Until(
        absl::Seconds(60), [&] { return service_->StepOf(job_.name) >= step; }, absl::StrCat("step ", step));
  }

  // What a folder looks like now, below `target`.
  void Rebuild(ino_t folder, const std::string& target) {
    ASSERT_TRUE(MakeDirs(target).ok());
    std::ifstream names(absl::StrCat(shadow_, "/names.", folder));
    ino_t inode = 0;
    std::string name;
    while (names >> inode && names.ignore(1) && std::getline(names, name)) {
      const std::string image = absl::StrCat(shadow_, "/", inode), path = target + "/" + name;
      if (std::filesystem::exists(absl::StrCat(shadow_, "/names.", inode))) {
        Rebuild(inode, path);
      } else if (std::filesystem::exists(image)) {
        std::filesystem::copy_file(image, path);
      } else {
        std::ofstream(path).flush();  // its name is there, none of its bytes
      }
    }
  }
  void LosePower() {
    service_->PowerOff();
    struct stat info;
    ASSERT_EQ(stat(data_.c_str(), &info), 0);
    const std::string rebuilt = data_ + ".rebuilt";
    Rebuild(info.st_ino, rebuilt);
    std::filesystem::remove_all(data_);
    std::filesystem::remove_all(shadow_);
    ASSERT_TRUE(MakeDirs(shadow_).ok());
    // What was durable stays so: the images of the new files begin whole.
    std::filesystem::rename(rebuilt, data_);
    SeedShadow(data_);
  }
  void SeedShadow(const std::string& folder) {
    struct stat info;
    ASSERT_EQ(stat(folder.c_str(), &info), 0);
    std::ofstream names(absl::StrCat(shadow_, "/names.", info.st_ino));
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      ASSERT_EQ(stat(entry.path().c_str(), &info), 0);
      names << info.st_ino << " " << entry.path().filename().string() << "\n";
      if (entry.is_directory()) {
        SeedShadow(entry.path());
      } else {
        std::filesystem::copy_file(entry.path(), absl::StrCat(shadow_, "/", info.st_ino));
      }
    }
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
  std::string data_, shadow_;
};

TEST_F(PowerLoss, NoAcknowledgedWriteIsMissing) {
  Start();
  std::mt19937_64 random{std::random_device{}()};
  for (int loss = 0; loss < 3; ++loss) {
    WaitForStep(service_->StepOf(job_.name) + 2);
    absl::SleepFor(absl::Milliseconds(random() % 700));
    LosePower();
    service_->Start();
    ASSERT_FALSE(HasFatalFailure());
  }
  LocalService::Until(
      absl::Seconds(90), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
  ExpectWhole(*service_, job_);
  ExpectExactReplay(*service_, job_);
}

TEST_F(PowerLoss, AForgottenFsyncWouldBeSeen) {
  Start("/payloads/");
  WaitForStep(3);
  LosePower();
  service_->Start();
  const CommandResult ledger = service_->Ctl("ledger " + job_.name + " --check");
  EXPECT_NE(ledger.code, 0);
  EXPECT_THAT(ledger.output, testing::HasSubstr("is damaged"));
}

}  // namespace
}  // namespace rlhf
