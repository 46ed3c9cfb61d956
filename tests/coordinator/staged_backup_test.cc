// What a backup holds of imported comparisons when they change while it is made, and how much room it wants.
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/backup.h"
#include "coordinator/feedback/import_log_rows.h"
#include "coordinator/store/store_decorator.h"
#include "rlhf/v1/state.pb.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

// A store in which something happens right before and right after its rows are copied.
class BusyStore final : public StoreDecorator {
 public:
  using StoreDecorator::StoreDecorator;
  void Enqueue(WriteBatch batch, Committed done) override { store_->Commit(std::move(batch), std::move(done)); }
  absl::Status BackUp(const std::string& path) override {
    ++copies;
    if (before) before();
    const absl::Status status = store_->BackUp(path);
    if (after) after();
    return status;
  }
  std::function<void()> before, after;
  int copies = 0;
};

class StagedBackupTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_.File("payloads")).ok());
    ASSERT_TRUE(MakeDirs(dir_.File("comparisons")).ok());
    auto store = OpenSqliteStore(dir_.File("state.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = std::make_unique<BusyStore>(*std::move(store));
  }
  std::string LogOf(uint32_t generation) const { return ImportLogPath("default", "team/human", generation); }
  void SetLog(uint32_t generation, uint64_t length) {
    v1::PayloadRef end;
    end.set_segment(generation);
    end.set_offset(length);
    WriteBatch batch;
    batch.Put(Table::kMeta, ImportLogKey("default", "team/human"), end.SerializeAsString());
    ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  }
  void Write(uint32_t generation, const std::string& content) {
    ASSERT_TRUE(WriteFileDurably(dir_.File(LogOf(generation)), content).ok());
  }
  // What Forget does: a log of the next generation, the row, and the old one is gone.
  void Rewrite(uint32_t generation, const std::string& content) {
    Write(generation, content);
    SetLog(generation, content.size());
    fs::remove(dir_.File(LogOf(generation - 1)));
  }
  // Import logs of a backup made now, by path, each as much of it as belongs to the backup.
  std::map<std::string, std::string> BackUp() {
    std::map<std::string, std::string> logs;
    const auto backup = StagedBackup::Make(store_.get(), dir_.path(), 0);
    EXPECT_TRUE(backup.ok()) << backup.status();
    if (!backup.ok()) return logs;
    for (const StagedBackup::File& file : (*backup)->files()) {
      if (file.path.rfind("comparisons/", 0) == 0)
        logs[file.path] = ReadFile((*backup)->dir() + "/" + file.path)->substr(0, file.size);
    }
    return logs;
  }

  ScratchDir dir_;
  std::unique_ptr<BusyStore> store_;
};

TEST_F(StagedBackupTest, OfALogThereIsAsMuchAsTheRowsSay) {
  Write(0, "acknowledged, and being imported");
  SetLog(0, 12);
  EXPECT_THAT(BackUp(), UnorderedElementsAre(Pair(LogOf(0), "acknowledged")));
}

TEST_F(StagedBackupTest, ARaterWhoIsForgottenMeanwhileTakesNothingFromIt) {
  Write(0, "with anna");
  SetLog(0, 9);
  store_->after = [this] { Rewrite(1, "without"); };
  EXPECT_THAT(BackUp(), UnorderedElementsAre(Pair(LogOf(0), "with anna"))) << "as the copied rows say";
  store_->after = nullptr;
  EXPECT_THAT(BackUp(), UnorderedElementsAre(Pair(LogOf(1), "without")));
}

TEST_F(StagedBackupTest, ALogThatComesAndGoesWhileRowsAreCopiedMakesItBeginAnew) {
  Write(0, "first");
  SetLog(0, 5);
  store_->before = [this] { Rewrite(1, "second"); };
  store_->after = [this] {
    Rewrite(2, "third");
    store_->before = store_->after = nullptr;
  };
  EXPECT_THAT(BackUp(), UnorderedElementsAre(Pair(LogOf(2), "third")));
  EXPECT_EQ(store_->copies, 2);
}

TEST_F(StagedBackupTest, ALogThatWasLostBeforeKeepsNothingElseOut) {
  SetLog(0, 5);
  EXPECT_THAT(BackUp(), IsEmpty());
}

TEST_F(StagedBackupTest, ALogThatAKillLeftBehindAfterForgettingGoesAtTheNextStart) {
  ASSERT_TRUE(RemoveReplacedLogs(store_.get(), dir_.path()).ok());
  Write(0, "with anna");
  Write(1, "without");
  SetLog(1, 7);
  ASSERT_TRUE(RemoveReplacedLogs(store_.get(), dir_.path()).ok());
  EXPECT_FALSE(fs::exists(dir_.File(LogOf(0))));
  EXPECT_EQ(*ReadFile(dir_.File(LogOf(1))), "without");
}

TEST_F(StagedBackupTest, WithoutRoomForASecondCopyOfTheRowsItIsRefused) {
  const auto refused = StagedBackup::Make(store_.get(), dir_.path(), uint64_t{1} << 60);
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
  EXPECT_EQ(ReasonOf(refused.status()), v1::STORE_UNAVAILABLE);
  EXPECT_THAT(refused.status().message(), HasSubstr("MB left, expected at least"));
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    EXPECT_NE(entry.path().filename().string().rfind(".backup-", 0), 0u) << "nothing was begun";
  EXPECT_EQ(store_->copies, 0);
}

}  // namespace
}  // namespace rlhf::coordinator
