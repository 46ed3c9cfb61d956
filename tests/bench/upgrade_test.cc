// The store that an earlier release left behind is brought to this one's schema, after a copy of it; its ledger holds;
// and its job goes on with workers of the protocol before this one.
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
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

using Rows = std::map<std::string, std::string>;  // key to value

struct Contents {
  int version = 0;
  std::map<std::string, Rows> tables;  // by name
};

Contents ContentsOf(const std::string& file) {
  Contents contents;
  sqlite3* database = nullptr;
  EXPECT_EQ(sqlite3_open_v2(file.c_str(), &database, SQLITE_OPEN_READONLY, nullptr), SQLITE_OK) << file;
  const auto each = [&](const std::string& sql, const std::function<void(sqlite3_stmt*)>& take) {
    sqlite3_stmt* statement = nullptr;
    EXPECT_EQ(sqlite3_prepare_v2(database, sql.c_str(), -1, &statement, nullptr), SQLITE_OK) << sql;
    while (sqlite3_step(statement) == SQLITE_ROW) take(statement);
    sqlite3_finalize(statement);
  };
  const auto bytes = [](sqlite3_stmt* statement, int column) {
    const auto* data = static_cast<const char*>(sqlite3_column_blob(statement, column));
    return data == nullptr ? std::string() : std::string(data, sqlite3_column_bytes(statement, column));
  };
  each("PRAGMA user_version", [&](sqlite3_stmt* row) { contents.version = sqlite3_column_int(row, 0); });
  each("SELECT name FROM sqlite_master WHERE type = 'table'",
       [&](sqlite3_stmt* row) { contents.tables[bytes(row, 0)]; });
  for (auto& [name, rows] : contents.tables) {
    each("SELECT key, value FROM " + name,
         [&rows = rows, &bytes](sqlite3_stmt* row) { rows[bytes(row, 0)] = bytes(row, 1); });
  }
  sqlite3_close(database);
  return contents;
}

// Version 2 was never released. Its tables are version 3's; what is new in 3 is that a step may be issued in part, and
// the steps of the fixture are whole: it is read as a file of version 2, too.
constexpr int kLikeVersion3 = 2;

std::string FixtureOf(int version) {
  return absl::StrCat(SourceDir(), "/tests/golden/store_v", version == kLikeVersion3 ? 3 : version);
}

class UpgradeTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    const std::string golden = FixtureOf(GetParam());
    auto sql = ReadFile(golden + "/state.sql");
    const auto payloads = ReadFile(golden + "/payloads.json");
    ASSERT_TRUE(sql.ok() && payloads.ok()) << golden;
    if (GetParam() == kLikeVersion3) absl::StrAppend(&*sql, "PRAGMA user_version=", GetParam(), ";\n");
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
  // The load run's job, which was running.
  std::string JobId() {
    auto store = coordinator::OpenSqliteStore(Data() + "/state.db");
    EXPECT_TRUE(store.ok()) << store.status();
    std::string id;
    const absl::Status scanned =
        (*store)->Scan(coordinator::Table::kJobs, "", [&](absl::string_view key, absl::string_view value) {
          v1::Job job;
          EXPECT_TRUE(job.ParseFromArray(value.data(), static_cast<int>(value.size())));
          if (job.spec().has_ppo()) id = std::string(key);
          return true;
        });
    EXPECT_TRUE(scanned.ok()) << scanned;
    EXPECT_NE(id, "");
    return id;
  }
  LoadOptions Options() {
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
    return options;
  }
  ScratchDir dir_;
};
INSTANTIATE_TEST_SUITE_P(Versions, UpgradeTest, testing::Range(1, coordinator::kSchemaVersion + 1),
                         [](const auto& version) { return absl::StrCat("V", version.param); });

TEST(UpgradeFixtures, ThereIsOneOfEveryVersion) {
  for (int version = 1; version <= coordinator::kSchemaVersion; ++version) {
    if (version == kLikeVersion3) continue;
    const std::string file = FixtureOf(version) + "/state.sql";
    const auto sql = ReadFile(file);
    ASSERT_TRUE(sql.ok()) << "no store of schema version " << version
                          << ": a release with a new version commits one (docs/testing.md, \"A release\"): "
                          << sql.status();
    EXPECT_EQ(sql->find(absl::StrCat("PRAGMA user_version=", version, ";\n")), 0u) << file;
  }
}

TEST_P(UpgradeTest, TheStoreIsCopiedThenMigratedAndNothingIsLost) {
  const Contents before = ContentsOf(Data() + "/state.db");
  ASSERT_EQ(before.version, GetParam());
  ASSERT_FALSE(before.tables.at("samples").empty());
  (void)JobId();  // opens it
  const std::string copy = absl::StrCat(Data(), "/state.db.before-v", coordinator::kSchemaVersion);
  if (GetParam() < coordinator::kSchemaVersion) {
    const Contents copied = ContentsOf(copy);
    EXPECT_EQ(copied.version, before.version);
    EXPECT_EQ(copied.tables, before.tables);
  } else {
    EXPECT_FALSE(std::filesystem::exists(copy)) << "there was nothing to migrate";
  }
  Contents after = ContentsOf(Data() + "/state.db");
  EXPECT_EQ(after.version, coordinator::kSchemaVersion);
  for (const char* table : coordinator::kTableNames) {
    ASSERT_EQ(after.tables.count(table), 1u) << table;
    const auto old = before.tables.find(table);
    EXPECT_EQ(after.tables[table], old == before.tables.end() ? Rows() : old->second) << table;
  }
}

TEST_P(UpgradeTest, WhatPeopleDidIsThereAfterwards) {
  if (GetParam() == 1) GTEST_SKIP() << "the fixture of version 1 is of a load run alone";
  // The fixture has something of everything.
  const Contents before = ContentsOf(Data() + "/state.db");
  for (const char* table : coordinator::kTableNames) EXPECT_FALSE(before.tables.at(table).empty()) << table;
  const auto cluster = LoadCluster::Start(Options());
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  ASSERT_TRUE((*cluster)->WriteContext(dir_.File("context.json")).ok());
  const auto ctl = [&](const std::string& arguments) {
    const CommandResult result =
        RunCommand(absl::StrCat(BinDir(), "/rlhfctl --context ", dir_.File("context.json"), " ", arguments));
    EXPECT_EQ(result.code, 0) << arguments << ": " << result.output;
    return result.output;
  };
  const nlohmann::json gates = nlohmann::json::parse(ctl("--output json gate list --all"), nullptr, false);
  ASSERT_EQ(gates.size(), 2u) << gates.dump();
  std::set<std::string> states;
  for (const auto& gate : gates) states.insert(gate.value("state", ""));
  EXPECT_EQ(states, (std::set<std::string>{"GATE_APPROVED", "GATE_WAITING"}));
  EXPECT_THAT(ctl("get waiting"), testing::HasSubstr("state: waiting"));
  EXPECT_THAT(ctl("get approved"), testing::HasSubstr("state: succeeded"));
  EXPECT_THAT(ctl("quota list"), testing::ContainsRegex("default +\\(all\\) +50 +8 "));
  EXPECT_THAT(ctl("token list"), testing::ContainsRegex("watcher +default +VIEWER"));
  EXPECT_THAT(ctl("feedback sets"), testing::ContainsRegex("rated +1 +12 "));
  EXPECT_THAT(ctl("models list"), testing::HasSubstr("approved/assistant"));
  std::vector<std::string> comparisons =
      absl::StrSplit(ctl("feedback export --job people --format own"), '\n', absl::SkipEmpty());
  EXPECT_EQ(comparisons.back(), "4 lines");
  comparisons.pop_back();
  EXPECT_EQ(comparisons.size(), 4u);
  for (const std::string& line : comparisons) EXPECT_THAT(line, testing::HasSubstr("\"preference\":\"FIRST\""));
  EXPECT_THAT(ctl("audit verify"), testing::HasSubstr("records hold"));
  for (const char* job : {"approved", "people"}) ctl(absl::StrCat("ledger ", job, " --check"));
}

TEST_P(UpgradeTest, ItsJobGoesOnWithWorkersOfTheProtocolBefore) {
  const LoadOptions options = Options();
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
