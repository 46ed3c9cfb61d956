// The coordinator's disk, and that of the artifacts, after a loss of power: only what was fsynced is left
// (tests/faults/unsynced.cc). No acknowledged write and no named checkpoint may be missing, which a SIGKILL alone
// cannot show.
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
  // One folder of the cluster loses what is not durable; the instances are those that write to it.
  void Start(const std::string& folder = "data", const std::vector<std::string>& instances = {"coordinator"},
             const std::string& forget = "") {
    LocalServiceOptions options;
    options.faults = true;
    options.up = {"--slots", "32", "--learners", absl::StrCat(job_.ranks)};
    options.prepare = [&](const std::string& dir) {
      data_ = dir + "/" + folder;
      shadow_ = dir + "/shadow";
      ASSERT_TRUE(MakeDirs(data_).ok());
      ASSERT_TRUE(MakeDirs(shadow_).ok());
    };
    // The folder's name is known only when the service is made.
    service_ = std::make_unique<LocalService>(options, [&](const std::string& dir) {
      std::vector<std::string> words;
      for (const std::string& instance : instances) {
        words.insert(words.end(), {"--wrap", absl::StrCat(instance, "=LD_PRELOAD=", LocalService::FaultsBinDir(),
                                                          "/librlhf_unsynced.so UNSYNCED_ROOT=", dir, "/", folder,
                                                          " UNSYNCED_SHADOW=", dir, "/shadow",
                                                          forget.empty() ? "" : " UNSYNCED_FORGET=" + forget)});
      }
      return words;
    });
    MakeSmallModel(service_->scratch().path());
    job_.steps = kOutlastsAKill;
    SubmitSmallJob(*service_, job_);
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

  // Power is lost so many times, each time a moment after so many more steps.
  void SucceedDespite(int losses, int64_t steps) {
    std::mt19937_64 random{std::random_device{}()};
    for (int loss = 0; loss < losses; ++loss) {
      WaitForStep(service_->StepOf(job_.name) + steps);
      absl::SleepFor(absl::Milliseconds(random() % 700));
      LosePower();
      service_->Start();
      ASSERT_FALSE(HasFatalFailure());
    }
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
  }

  std::unique_ptr<LocalService> service_;
  SmallJob job_;
  std::string data_, shadow_;
};

TEST_F(PowerLoss, NoAcknowledgedWriteIsMissing) {
  Start();
  SucceedDespite(/*losses=*/3, /*steps=*/2);
  ASSERT_FALSE(HasFatalFailure());
  ExpectWhole(*service_, job_);
  ExpectExactReplay(*service_, job_);
}

TEST_F(PowerLoss, AForgottenFsyncWouldBeSeen) {
  Start("data", {"coordinator"}, "/payloads/");
  WaitForStep(3);
  LosePower();
  service_->Start();
  const CommandResult ledger = service_->Ctl("ledger " + job_.name + " --check");
  EXPECT_NE(ledger.code, 0);
  EXPECT_THAT(ledger.output, testing::HasSubstr("is damaged"));
}

// Its learner is gone, too: what the job goes on from is the checkpoint that the coordinator has by name.
TEST_F(PowerLoss, NoCheckpointThatHasANameIsDamaged) {
  job_.ranks = 1;
  job_.checkpoint_every = 2;
  Start("artifacts", {"coordinator", "learner-0"});
  SucceedDespite(/*losses=*/2, /*steps=*/3);
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_THAT(service_->Log("coordinator"), testing::Not(testing::HasSubstr("is damaged (")));
  ExpectWhole(*service_, job_);
  ExpectExactReplay(*service_, job_);
}

TEST_F(PowerLoss, AForgottenFsyncOfACheckpointWouldBeSeen) {
  job_.ranks = 1;
  job_.checkpoint_every = 2;
  Start("artifacts", {"coordinator", "learner-0"}, "state.safetensors");
  WaitForStep(5);
  LosePower();
  service_->Start();
  LocalService::Until(
      absl::Seconds(60), [&] { return service_->Log("coordinator").find("is damaged (") != std::string::npos; },
      "the damage is found");
}

}  // namespace
}  // namespace rlhf
