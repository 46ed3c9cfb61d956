// The store that an earlier release left behind is brought to this one's schema, after a copy of it; its ledger holds;
// and its job goes on with workers of the protocol before this one.
#include <filesystem>

#include <gtest/gtest.h>
#include <sqlite3.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "artifact/artifact_root.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "common/durable_file.h"
#include "common/process.h"
#include "coordinator/store/state_store.h"
#include "tests/testing/golden.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::bench {
namespace {

// Number of rows of every table, by name; and the schema's version under "version".
std::map<std::string, int> Contents(const std::string& file) {
  std::map<std::string, int> contents;
  sqlite3* database = nullptr;
  EXPECT_EQ(sqlite3_open_v2(file.c_str(), &database, SQLITE_OPEN_READONLY, nullptr), SQLITE_OK) << file;
  const auto number = [&](const std::string& sql) {
    sqlite3_stmt* statement = nullptr;
    EXPECT_EQ(sqlite3_prepare_v2(database, sql.c_str(), -1, &statement, nullptr), SQLITE_OK) << sql;
    EXPECT_EQ(sqlite3_step(statement), SQLITE_ROW) << sql;
    const int value = sqlite3_column_int(statement, 0);
    sqlite3_finalize(statement);
    return value;
  };
  contents["version"] = number("PRAGMA user_version");
  for (const char* table : {"jobs", "samples", "events", "artifacts", "audit", "meta"})
    contents[table] = number(absl::StrCat("SELECT COUNT(*) FROM ", table));
  sqlite3_close(database);
  return contents;
}

class UpgradeTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string golden = absl::StrCat(SourceDir(), "/tests/golden/", GetParam());
    const auto sql = ReadFile(golden + "/state.sql");
    const auto payloads = ReadFile(golden + "/payloads.json");
    ASSERT_TRUE(sql.ok() && payloads.ok()) << golden;
    ASSERT_TRUE(MakeDirs(Data() + "/payloads").ok());
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open((Data() + "/state.db").c_str(), &database), SQLITE_OK);
    char* error = nullptr;
    ASSERT_EQ(sqlite3_exec(database, sql->c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(database);
    const nlohmann::json segments = nlohmann::json::parse(*payloads);
    for (const auto& [name, text] : segments.items()) {
      std::string bytes;
      ASSERT_TRUE(absl::Base64Unescape(text.get<std::string>(), &bytes));
      ASSERT_TRUE(WriteFileDurably(absl::StrCat(Data(), "/payloads/", name), bytes).ok());
    }
    // The artifact root is not in the fixture: the job's inputs are made again, to the same digests.
    ASSERT_TRUE(WriteSimulatedInputs(dir_.path()).ok());
    const artifact::ArtifactRoot root(dir_.File("artifacts"));
    ASSERT_TRUE(root.Publish(dir_.File("model")).ok());
    ASSERT_TRUE(root.Publish(dir_.File("prompts.jsonl")).ok());
  }
  std::string Data() const { return dir_.File("data"); }
  // The one job of the store.
  std::string JobId() {
    auto store = coordinator::OpenSqliteStore(Data() + "/state.db");
    EXPECT_TRUE(store.ok()) << store.status();
    const auto key = (*store)->LastKey(coordinator::Table::kJobs, "");
    EXPECT_TRUE(key.ok()) << key.status();
    return key.value_or("");
  }
  ScratchDir dir_;
};
INSTANTIATE_TEST_SUITE_P(Releases, UpgradeTest, testing::Values("store_v1"));

TEST_P(UpgradeTest, TheStoreIsCopiedThenMigratedAndNothingIsLost) {
  const std::map<std::string, int> before = Contents(Data() + "/state.db");
  ASSERT_LT(before.at("version"), coordinator::kSchemaVersion);
  ASSERT_GT(before.at("samples"), 0);
  (void)JobId();  // opens it
  EXPECT_EQ(Contents(absl::StrCat(Data(), "/state.db.before-v", coordinator::kSchemaVersion)), before);
  std::map<std::string, int> after = Contents(Data() + "/state.db");
  EXPECT_EQ(after.at("version"), coordinator::kSchemaVersion);
  after["version"] = before.at("version");
  EXPECT_EQ(after, before);
}

TEST_P(UpgradeTest, ItsJobGoesOnWithWorkersOfTheProtocolBefore) {
  LoadOptions options;
  options.coordinator = BinDir() + "/rlhf-coordinator";
  options.dir = dir_.path();
  options.job_id = JobId();
  options.insecure = true;
  options.protocol_version = kProtocolVersion - 1;
  options.workers = 4;
  options.samples_per_second = 100;
  options.samples_per_lease = 2;
  options.response_tokens = 4;
  const auto cluster = LoadCluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto ledger = [&](bool check) {
    const auto found = CheckLedger((*cluster)->api(), options.job_id, check);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.value_or(v1::GetLedgerResponse());
  };
  EXPECT_TRUE(ledger(true).violations().empty()) << absl::StrJoin(ledger(true).violations(), "\n");
  const int64_t issued = ledger(false).counts().issued();
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (ledger(false).counts().trained() < issued + 16) {
    ASSERT_LT(absl::Now(), deadline) << ledger(false).ShortDebugString();
    absl::SleepFor(absl::Milliseconds(20));  // another process: there is nothing to wait on but its answers
  }
  EXPECT_TRUE(ledger(true).violations().empty()) << absl::StrJoin(ledger(true).violations(), "\n");
}

}  // namespace
}  // namespace rlhf::bench
