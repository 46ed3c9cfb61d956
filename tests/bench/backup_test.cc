// A backup of a live coordinator while a job runs, restored: nothing in it is missing, and the job goes on from there.
#include <filesystem>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "common/durable_file.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::bench {
namespace {

class BackupTest : public testing::Test {
 protected:
  void SetUp() override {
    LoadOptions options;
    options.coordinator = BinDir() + "/rlhf-coordinator";
    options.workers = 20;
    options.samples_per_second = 400;
    options.samples_per_lease = 4;
    options.response_tokens = 50;
    options.samples_per_step = 80;
    options.checkpoint_every = 3;
    auto cluster = LoadCluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
    ASSERT_TRUE(cluster_->WriteContext(dir_.File("context.json")).ok());
  }
  v1::LedgerCounts Ledger(bool check) {
    const auto ledger = CheckLedger(cluster_->api(), cluster_->job_id(), check);
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    if (!ledger.ok()) return {};
    EXPECT_TRUE(ledger->violations().empty()) << absl::StrJoin(ledger->violations(), "\n");
    return ledger->counts();
  }
  void WaitTrained(int64_t samples) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (Ledger(false).trained() < samples) {
      ASSERT_LT(absl::Now(), deadline) << "the job does not go on: " << Ledger(false).ShortDebugString();
      absl::SleepFor(absl::Milliseconds(20));  // another process: there is nothing to wait on but its answers
    }
  }
  CommandResult Ctl(const std::string& arguments) {
    return RunCommand(absl::StrCat(BinDir(), "/rlhfctl --context ", dir_.File("context.json"), " ", arguments));
  }

  ScratchDir dir_;
  std::unique_ptr<LoadCluster> cluster_;
};

TEST_F(BackupTest, ARestoredBackupHoldsWhatWasAcknowledgedAndTheJobGoesOn) {
  WaitTrained(240);
  const int64_t before = Ledger(false).trained();
  const CommandResult made = Ctl("service backup --out " + dir_.File("backup"));
  ASSERT_EQ(made.code, 0) << made.output;
  const int64_t after = Ledger(false).trained();
  WaitTrained(after + 240);  // the live service was not disturbed, and is ahead of its backup

  const CommandResult restored =
      Ctl(absl::StrCat("service restore --from ", dir_.File("backup"), " --data-dir ", dir_.File("data")));
  ASSERT_EQ(restored.code, 0) << restored.output;
  cluster_->StopFleet();
  const absl::Status moved = cluster_->MoveTo(dir_.File("data"));
  ASSERT_TRUE(moved.ok()) << moved;
  const v1::LedgerCounts counts = Ledger(true);
  // Rolled back to the checkpoint, perhaps: what was trained is trained or assigned.
  EXPECT_GE(counts.trained() + counts.assigned(), before);
  EXPECT_FALSE(std::filesystem::exists(dir_.File("data/RESTORED")));
  WaitTrained(after + 480);
  (void)Ledger(true);
}

TEST_F(BackupTest, ADamagedOrIncompleteBackupIsRefused) {
  WaitTrained(80);
  ASSERT_EQ(Ctl("service backup --out " + dir_.File("backup")).code, 0);
  EXPECT_NE(Ctl("service backup --out " + dir_.File("backup")).code, 0) << "over another backup";
  const std::string restore =
      absl::StrCat("service restore --from ", dir_.File("backup"), " --data-dir ", dir_.File("data"));
  auto bytes = ReadFile(dir_.File("backup/state.db"));
  ASSERT_TRUE(bytes.ok());
  (*bytes)[bytes->size() / 2] ^= 1;
  ASSERT_TRUE(WriteFileDurably(dir_.File("backup/state.db"), *bytes).ok());
  const CommandResult damaged = Ctl(restore);
  EXPECT_NE(damaged.code, 0);
  EXPECT_NE(damaged.output.find("digest"), std::string::npos) << damaged.output;
  EXPECT_FALSE(std::filesystem::exists(dir_.File("data")));
  std::filesystem::remove(dir_.File("backup/backup.json"));
  EXPECT_NE(Ctl(restore).code, 0);
  const CommandResult in_use =
      Ctl(absl::StrCat("service restore --from ", dir_.File("backup"), " --data-dir ", cluster_->data_dir()));
  EXPECT_NE(in_use.code, 0);
}

}  // namespace
}  // namespace rlhf::bench
