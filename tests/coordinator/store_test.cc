// The store's contract, against SQLite and against the store of tests; payload segments; the event log.
#include <sqlite3.h>
#include <sys/mount.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/event_log.h"
#include "coordinator/store/payload_store.h"
#include "coordinator/store/state_store.h"
#include "tests/coordinator/memory_store.h"
#include "tests/coordinator/store_contract.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

std::unique_ptr<StateStore> OpenSqlite(const ScratchDir& dir) {
  auto opened = OpenSqliteStore(dir.File("state.db"));
  EXPECT_TRUE(opened.ok()) << opened.status();
  return opened.ok() ? *std::move(opened) : nullptr;
}
INSTANTIATE_TEST_SUITE_P(
    Stores, StoreContract,
    testing::Values(StoreKind{"Memory", [](const ScratchDir&) { return std::make_unique<EdgeMemoryStore>(); }},
                    StoreKind{"Sqlite", OpenSqlite}),
    [](const auto& info) { return std::string(info.param.name); });

class SqliteTest : public StoreContract {};
INSTANTIATE_TEST_SUITE_P(Stores, SqliteTest, testing::Values(StoreKind{"Sqlite", OpenSqlite}));

TEST_P(SqliteTest, WhatWasAcknowledgedIsThereAfterReopening) {
  Put(Table::kTokens, std::string("\0\xff binary", 9), std::string("\0value", 6));
  Open();
  EXPECT_EQ(*store_->Get(Table::kTokens, std::string("\0\xff binary", 9)), std::string("\0value", 6));
}

// A job's newest event is read at each of its steps, among those of all others.
TEST_P(SqliteTest, WhatAFewRowsCostDoesNotGrowWithWhatLiesBehindThem) {
  WriteBatch batch;
  for (const Table table : {Table::kEvents, Table::kSamples}) {
    for (uint64_t i = 0; i < 3; ++i) batch.Put(table, KeyOf("a/", {i}), "few");
  }
  for (uint64_t i = 0; i < 600; ++i) batch.Put(Table::kSamples, KeyOf("b/", {i}), std::string(20'000, 'x'));
  ASSERT_TRUE(store_->CommitAndWait(std::move(batch)).ok());
  const auto read = [&](Table table) {
    const absl::Time began = absl::Now();
    const std::string after = KeyOf("a/", {1});
    for (int i = 0; i < 300; ++i) EXPECT_EQ(Keys(table, "a/", &after).size(), 1u);
    return absl::Now() - began;
  };
  // The least of a few, whatever else runs here.
  absl::Duration alone = absl::InfiniteDuration(), among = absl::InfiniteDuration();
  for (int i = 0; i < 3; ++i) {
    alone = std::min(alone, read(Table::kEvents));
    among = std::min(among, read(Table::kSamples));
  }
  EXPECT_LT(among, 10 * alone) << among << " among others, " << alone << " alone";
}

TEST_P(SqliteTest, AFileThatIsNoStoreIsRefused) {
  ASSERT_TRUE(
      WriteFileDurably(dir_.File("text.db"),
                       "this is not a database, whatever it says; it is long enough to be read as a page header")
          .ok());
  const auto opened = OpenSqliteStore(dir_.File("text.db"));
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(opened.status()), v1::STORE_UNAVAILABLE);
}

TEST_P(SqliteTest, AMigrationThatHasNoRoomForItsCopyChangesNothing) {
  const std::string volume = dir_.File("volume"), path = volume + "/state.db";
  ASSERT_TRUE(MakeDirs(volume).ok());
  if (mount("none", volume.c_str(), "tmpfs", 0, "size=64m") != 0)
    GTEST_SKIP() << "needs the right to mount a tmpfs: " << std::strerror(errno);
  const absl::Cleanup unmount = [&] { umount2(volume.c_str(), MNT_DETACH); };
  const auto version = [&](const char* sql) {
    sqlite3* db = nullptr;
    std::string found;
    EXPECT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
    const auto note = [](void* to, int, char** values, char**) {
      *static_cast<std::string*>(to) = values[0];
      return 0;
    };
    EXPECT_EQ(sqlite3_exec(db, sql, note, &found, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    sqlite3_close(db);
    return found;
  };
  {
    const auto store = OpenSqliteStore(path);
    ASSERT_TRUE(store.ok()) << store.status();
    WriteBatch batch;
    batch.Put(Table::kJobs, "job", "as it was");
    ASSERT_TRUE((*store)->CommitAndWait(std::move(batch)).ok());
  }
  version("PRAGMA user_version = 1");
  ASSERT_EQ(mount("none", volume.c_str(), "tmpfs", MS_REMOUNT, "size=8m"), 0) << std::strerror(errno);
  const absl::Status refused = OpenSqliteStore(path).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("Nothing was changed"));
  EXPECT_EQ(version("PRAGMA user_version"), "1");
  const std::string copy = absl::StrCat(path, ".before-v", kSchemaVersion);
  EXPECT_FALSE(std::filesystem::exists(copy));
  ASSERT_EQ(mount("none", volume.c_str(), "tmpfs", MS_REMOUNT, "size=64m"), 0) << std::strerror(errno);
  const auto store = OpenSqliteStore(path);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->Get(Table::kJobs, "job").value_or("none"), "as it was");
  EXPECT_TRUE(std::filesystem::exists(copy));
}

TEST_P(SqliteTest, ABackupIsAWholeStoreAndWritesGoOnMeanwhile) {
  for (int i = 0; i < 50; ++i) Put(Table::kJobs, absl::StrCat("before", i), "x");
  ASSERT_TRUE(store_->BackUp(dir_.File("copy.db")).ok());
  Put(Table::kJobs, "after", "x");
  auto copy = OpenSqliteStore(dir_.File("copy.db"));
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ((*copy)->Get(Table::kJobs, "before49").value_or("none"), "x");
  EXPECT_TRUE(absl::IsNotFound((*copy)->Get(Table::kJobs, "after").status()));
}

class PayloadTest : public testing::Test {
 protected:
  void Open() {
    auto opened = OpenPayloadStore(dir_.File("payloads"), /*segment_bytes=*/200);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  void SetUp() override { Open(); }
  ScratchDir dir_;
  std::unique_ptr<PayloadStore> store_;
};

TEST_F(PayloadTest, PayloadsAreReadableBeforeAndAfterTheirSync) {
  std::vector<std::pair<v1::PayloadRef, std::string>> written;
  for (int i = 0; i < 20; ++i) {
    const std::string bytes(static_cast<size_t>(10 + 7 * i), static_cast<char>('a' + i));
    written.emplace_back(store_->Append(bytes), bytes);
  }
  EXPECT_GT(written.back().first.segment(), 1u);
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  ASSERT_TRUE(store_->Sync().ok());
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  Open();
  for (const auto& [ref, bytes] : written) EXPECT_EQ(*store_->Read(ref), bytes);
  // Never over what is there.
  EXPECT_GT(store_->Append("x").segment(), written.back().first.segment());
}

TEST_F(PayloadTest, ASegmentIsOnlyWrittenByWhoMadeIt) {
  // As a leader that hung and the one after it, on a shared folder.
  ASSERT_TRUE(store_->Append(std::string(150, 'a')).IsInitialized());
  ASSERT_TRUE(store_->Sync().ok());
  auto next = OpenPayloadStore(dir_.File("payloads"), /*segment_bytes=*/200, /*claim=*/true);
  ASSERT_TRUE(next.ok()) << next.status();
  const v1::PayloadRef late = store_->Append(std::string(150, 'b'));
  const v1::PayloadRef good = (*next)->Append(std::string(150, 'c'));
  ASSERT_EQ(late.segment(), good.segment()) << "both are to want the same place";
  EXPECT_EQ(store_->Sync().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE((*next)->Sync().ok());
  Open();
  EXPECT_EQ(store_->Read(good).value_or("none"), std::string(150, 'c'));
}

TEST_F(PayloadTest, SealedSegmentsGoAndNoOther) {
  const v1::PayloadRef old = store_->Append(std::string(150, 'a'));
  EXPECT_TRUE(store_->Sync().ok());
  EXPECT_THAT(*store_->Sealed(), testing::IsEmpty()) << "it is appended to";
  const v1::PayloadRef next = store_->Append(std::string(150, 'b'));
  ASSERT_NE(next.segment(), old.segment());
  EXPECT_THAT(*store_->Sealed(), testing::ElementsAre(old.segment()));
  const v1::PayloadRef newest = store_->Append(std::string(150, 'c'));
  EXPECT_THAT(*store_->Sealed(), testing::ElementsAre(old.segment())) << "the second is not written yet";
  ASSERT_TRUE(store_->Sync().ok());
  EXPECT_THAT(*store_->Sealed(), testing::UnorderedElementsAre(old.segment(), next.segment()));
  EXPECT_EQ(*store_->Remove({old.segment()}), 158u);
  EXPECT_FALSE(std::filesystem::exists(dir_.File("payloads/00000001.seg")));
  EXPECT_TRUE(absl::IsDataLoss(store_->Read(old).status()));
  EXPECT_EQ(store_->Read(next)->front(), 'b');
  EXPECT_EQ(store_->Read(newest)->front(), 'c');
  EXPECT_EQ(*store_->Remove({old.segment()}), 0u) << "it is gone";
  Open();  // what another start wrote is sealed
  EXPECT_THAT(*store_->Sealed(), testing::UnorderedElementsAre(next.segment(), newest.segment()));
}

TEST_F(PayloadTest, ManySegmentsNeedFewOpenFiles) {
  std::vector<v1::PayloadRef> refs;
  for (int i = 0; i < 300; ++i) {
    refs.push_back(store_->Append(std::string(150, 'a')));
    ASSERT_TRUE(store_->Sync().ok());
  }
  for (const v1::PayloadRef& ref : refs) ASSERT_TRUE(store_->Read(ref).ok());
  int open = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    open += std::filesystem::read_symlink(entry.path(), ignored).extension() == ".seg" ? 1 : 0;
  }
  EXPECT_LE(open, 2);
}

TEST_F(PayloadTest, AMissingSegmentIsDataLoss) {
  v1::PayloadRef ref = store_->Append("text");
  ASSERT_TRUE(store_->Sync().ok());
  std::filesystem::remove(dir_.File("payloads/00000001.seg"));
  ASSERT_TRUE(WriteFileDurably(dir_.File("payloads/00000007.seg"), "").ok());
  Open();
  EXPECT_EQ(store_->Read(ref).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(std::filesystem::exists(dir_.File("payloads/00000001.seg"))) << "reading made a file";
}

TEST_F(PayloadTest, AFlippedByteIsDataLoss) {
  const v1::PayloadRef ref = store_->Append("a sample of text");
  ASSERT_TRUE(store_->Sync().ok());
  const std::string file = dir_.File("payloads/00000001.seg");
  auto bytes = ReadFile(file);
  ASSERT_TRUE(bytes.ok());
  (*bytes)[12] ^= 1;
  ASSERT_TRUE(WriteFileDurably(file, *bytes).ok());
  Open();
  const auto read = store_->Read(ref);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("checksum"));
}

TEST_F(PayloadTest, RowsFollowTheirPayloads) {
  auto sqlite = OpenSqliteStore(dir_.File("state.db"));
  ASSERT_TRUE(sqlite.ok());
  const std::unique_ptr<StateStore> store = WithPayloads(*std::move(sqlite), store_.get());
  const v1::PayloadRef ref = store_->Append("payload");
  WriteBatch batch;
  batch.Put(Table::kSamples, "k", ref.SerializeAsString());
  ASSERT_TRUE(store->CommitAndWait(std::move(batch)).ok());
  Open();  // as another process would
  EXPECT_EQ(*store_->Read(ref), "payload");
}

TEST(EventLogTest, EventsAreNumberedAndReadFromAnyPoint) {
  EdgeMemoryStore store;
  const auto loop = EventLoop::StartThread(Clock::Real());
  for (int restart = 0; restart < 2; ++restart) {
    const auto log = MakeEventLog(&store, loop.get());
    WriteBatch batch;
    for (int i = 0; i < 3; ++i) {
      v1::JobEvent event;
      event.set_message(absl::StrCat(restart, "/", i));
      log->Append("job", event, &batch);
    }
    ASSERT_TRUE(store.CommitAndWait(std::move(batch)).ok());
    int woken = 0;
    const int64_t handle = log->Watch("job", [&] { ++woken; });
    log->Published("job");
    log->Published("other");
    log->Unwatch(handle);
    log->Published("job");
    EXPECT_EQ(woken, 1);
    const auto events = log->Read("job", 3 * restart + 1, 10);
    ASSERT_TRUE(events.ok());
    ASSERT_EQ(events->size(), 2u);
    EXPECT_EQ((*events)[0].sequence(), 3 * restart + 2);
    EXPECT_EQ(log->LastSequence("job"), 3 * restart + 3);
    EXPECT_EQ(log->Read("job", 0, 2)->size(), 2u);
  }
  loop->Stop();
}

}  // namespace
}  // namespace rlhf::coordinator
