// A backup of a live coordinator while a job runs, restored: nothing in it is missing, and the job goes on from there.
#include <filesystem>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "tests/bench/load_fixture.h"

namespace rlhf::bench {
namespace {

class BackupTest : public LoadClusterTest {
 protected:
  void SetUp() override { Start(SmallLoad()); }
};

TEST_F(BackupTest, ARestoredBackupHoldsWhatWasAcknowledgedAndTheJobGoesOn) {
  WaitTrained(3 * kSamplesPerStep);
  const int64_t before = Ledger(false).trained();
  const CommandResult made = Ctl("service backup --out " + dir_.File("backup"));
  ASSERT_EQ(made.code, 0) << made.output;
  const int64_t after = Ledger(false).trained();
  WaitTrained(after + 3 * kSamplesPerStep);  // the live service was not disturbed, and is ahead of its backup

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
  WaitTrained(after + 6 * kSamplesPerStep);
  (void)Ledger(true);
}

TEST_F(BackupTest, ADamagedOrIncompleteBackupIsRefused) {
  WaitTrained(kSamplesPerStep);
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
