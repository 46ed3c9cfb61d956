// The store's contract against a real PostgreSQL server, and what only this store promises: one leads, and nothing of a
// former leader's is committed.
#include "coordinator/store/postgres_store.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "common/free_port.h"
#include "common/status_util.h"
#include "tests/coordinator/store_contract.h"
#include "tests/testing/postgres_server.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

// One for all tests: starting it takes seconds.
class ServerOfAllTests final : public testing::Environment {
 public:
  void SetUp() override {
    if (PostgresServer::Missing().empty()) server = std::make_unique<PostgresServer>();
  }
  void TearDown() override {
    leads.clear();
    server.reset();
  }
  static inline std::unique_ptr<PostgresServer> server;
  static inline std::map<std::string, std::unique_ptr<PostgresLead>> leads;  // of stores that are open, by schema
};
[[maybe_unused]] testing::Environment* const environment = testing::AddGlobalTestEnvironment(new ServerOfAllTests);

// A folder's own tables.
PostgresOptions OptionsFor(const ScratchDir& dir) {
  PostgresOptions options;
  options.uri = ServerOfAllTests::server->Uri();
  options.data_dir = dir.path();
  options.schema = "s" + absl::BytesToHexString(dir.path().substr(dir.path().size() - 6));
  return options;
}

// The lead of a connection that was just closed is free as soon as the server has seen it.
std::unique_ptr<PostgresLead> TakeLead(const PostgresOptions& options) {
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (absl::Now() < deadline) {
    auto lead = ConnectPostgres(options);
    EXPECT_TRUE(lead.ok()) << lead.status();
    if (!lead.ok()) return nullptr;
    const absl::StatusOr<bool> leads = (*lead)->Try();
    EXPECT_TRUE(leads.ok()) << leads.status();
    if (!leads.ok()) return nullptr;
    if (*leads) return *std::move(lead);
    absl::SleepFor(absl::Milliseconds(10));  // another process: there is nothing to wait on but its answers
  }
  ADD_FAILURE() << "the lead was not free";
  return nullptr;
}

std::unique_ptr<StateStore> OpenPostgres(const ScratchDir& dir) {
  if (ServerOfAllTests::server == nullptr) return nullptr;
  const PostgresOptions options = OptionsFor(dir);
  ServerOfAllTests::leads.erase(options.schema);
  std::unique_ptr<PostgresLead> lead = TakeLead(options);
  if (lead == nullptr) return nullptr;
  auto opened = OpenPostgresStore(options, lead->epoch());
  EXPECT_TRUE(opened.ok()) << opened.status();
  ServerOfAllTests::leads[options.schema] = std::move(lead);
  return opened.ok() ? *std::move(opened) : nullptr;
}
INSTANTIATE_TEST_SUITE_P(Stores, StoreContract, testing::Values(StoreKind{"Postgres", OpenPostgres}),
                         [](const auto& info) { return std::string(info.param.name); });

class PostgresTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = PostgresServer::Missing(); !why.empty()) GTEST_SKIP() << why;
    options_ = OptionsFor(dir_);
  }
  std::unique_ptr<StateStore> Open(const PostgresLead& lead) {
    auto opened = OpenPostgresStore(options_, lead.epoch());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }
  static absl::Status Put(StateStore& store, const std::string& key, const std::string& value = "x") {
    WriteBatch batch;
    batch.Put(Table::kJobs, key, value);
    return store.CommitAndWait(std::move(batch));
  }
  std::string Sql(const std::string& statement) {
    return ServerOfAllTests::server->Sql(absl::StrCat("SET search_path = ", options_.schema, "; ", statement));
  }
  std::string Sessions(const std::string& purpose) {
    return Sql(absl::StrCat("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rlhf-coordinator ",
                            purpose, " ", options_.schema, "'"));
  }
  template <typename Condition>
  static void Until(Condition condition, const std::string& what) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (!condition()) {
      ASSERT_LT(absl::Now(), deadline) << "waited in vain until " << what;
      absl::SleepFor(absl::Milliseconds(20));  // another process: there is nothing to wait on but its answers
    }
  }
  ScratchDir dir_;
  PostgresOptions options_;
};

TEST_F(PostgresTest, WhatWasAcknowledgedIsThereForTheNextLeader) {
  const std::string key("\0\xff binary", 9), value("\0value", 6);
  auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  EXPECT_EQ(lead->epoch(), 1);
  auto store = Open(*lead);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(Put(*store, key, value).ok());
  store.reset();
  lead.reset();
  lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  EXPECT_EQ(lead->epoch(), 2);
  store = Open(*lead);
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->Get(Table::kJobs, key).value_or("none"), value);
  EXPECT_FALSE(lead->lost());
}

TEST_F(PostgresTest, OnlyOneLeads) {
  auto first = TakeLead(options_);
  ASSERT_NE(first, nullptr);
  auto second = ConnectPostgres(options_);
  ASSERT_TRUE(second.ok()) << second.status();
  for (int i = 0; i < 3; ++i) {
    const auto leads = (*second)->Try();
    ASSERT_TRUE(leads.ok()) << leads.status();
    EXPECT_FALSE(*leads);
  }
  EXPECT_EQ((*second)->epoch(), 0);
  first.reset();
  Until([&] { return (*second)->Try().value_or(false); }, "the second leads");
  EXPECT_EQ((*second)->epoch(), 2);
}

TEST_F(PostgresTest, AWriteOfAnEpochThatIsOverIsRefused) {
  const auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  const auto store = Open(*lead);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(Put(*store, "before").ok());
  // Its sessions are whole: only the row says that somebody else leads.
  (void)Sql("UPDATE leader SET epoch = epoch + 1");
  const absl::Status late = Put(*store, "late");
  EXPECT_EQ(late.code(), absl::StatusCode::kUnavailable) << late;
  EXPECT_EQ(ReasonOf(late), v1::NOT_LEADING) << late;
  EXPECT_EQ(Sql("SELECT count(*) FROM jobs"), "1");
  // And it stays so.
  (void)Sql("UPDATE leader SET epoch = epoch - 1");
  EXPECT_FALSE(Put(*store, "later").ok());
  EXPECT_EQ(Sql("SELECT count(*) FROM jobs"), "1");
}

TEST_F(PostgresTest, AnEpochThatIsOverOpensNoStore) {
  const auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  (void)Sql("UPDATE leader SET epoch = epoch + 1");
  EXPECT_TRUE(absl::IsAborted(OpenPostgresStore(options_, lead->epoch()).status()));
  Until([&] { return lead->lost(); }, "the lead is known to be lost");
}

TEST_F(PostgresTest, WhoLosesTheLockKnowsAndItsWriterIsEnded) {
  const auto former = TakeLead(options_);
  ASSERT_NE(former, nullptr);
  const auto store = Open(*former);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(Put(*store, "before").ok());
  ASSERT_EQ(Sessions("writer"), "1");
  (void)Sql(
      absl::StrCat("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
                   "'rlhf-coordinator lead ",
                   options_.schema, "'"));
  const auto next = TakeLead(options_);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->epoch(), 2);
  Until([&] { return Sessions("writer") == "0"; }, "the former leader's writer is ended");
  Until([&] { return former->lost(); }, "the former leader knows");
  EXPECT_EQ(Put(*store, "late").code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(next->lost());
  const auto now = Open(*next);
  ASSERT_NE(now, nullptr);
  EXPECT_TRUE(now->Get(Table::kJobs, "before").ok());
  EXPECT_TRUE(absl::IsNotFound(now->Get(Table::kJobs, "late").status()));
  EXPECT_TRUE(Put(*now, "after").ok());
}

TEST_F(PostgresTest, ATransactionOfTheFormerLeaderEndsBeforeTheNextEpochBegins) {
  auto former = TakeLead(options_);
  ASSERT_NE(former, nullptr);
  // A session as the writer's, in the middle of its transaction, and registered as the writer.
  const std::unique_ptr<PGconn, decltype(&PQfinish)> writer(PQconnectdb(options_.uri.c_str()), PQfinish);
  const auto run = [&](const std::string& sql) {
    const std::unique_ptr<PGresult, decltype(&PQclear)> result(PQexec(writer.get(), sql.c_str()), PQclear);
    return PQresultStatus(result.get());
  };
  ASSERT_EQ(run(absl::StrCat("SET search_path = ", options_.schema)), PGRES_COMMAND_OK);
  ASSERT_EQ(run("UPDATE leader SET writer_pid = pg_backend_pid(), writer_start = (SELECT backend_start FROM "
                "pg_stat_activity WHERE pid = pg_backend_pid())"),
            PGRES_COMMAND_OK);
  ASSERT_EQ(run("BEGIN"), PGRES_COMMAND_OK);
  ASSERT_EQ(run("SELECT 1 FROM leader WHERE epoch = 1 FOR SHARE"), PGRES_TUPLES_OK);
  ASSERT_EQ(run("INSERT INTO jobs VALUES ('late', 'x')"), PGRES_COMMAND_OK);
  former.reset();
  const auto next = TakeLead(options_);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->epoch(), 2);
  EXPECT_NE(run("COMMIT"), PGRES_COMMAND_OK) << "a former leader committed after the next one led";
  EXPECT_EQ(Sql("SELECT count(*) FROM jobs"), "0");
}

TEST_F(PostgresTest, AReaderThatIsCutOffIsReplaced) {
  const auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  const auto store = Open(*lead);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(Put(*store, "k").ok());
  (void)Sql(
      absl::StrCat("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
                   "'rlhf-coordinator reader ",
                   options_.schema, "'"));
  Until([&] { return Sessions("reader") == "0"; }, "the reader is ended");
  EXPECT_EQ(store->Get(Table::kJobs, "k").value_or("none"), "x");
}

TEST_F(PostgresTest, BigBatchesAndBigValuesPass) {
  const auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  const auto store = Open(*lead);
  ASSERT_NE(store, nullptr);
  WriteBatch batch;
  for (uint64_t i = 0; i < 20'000; ++i) batch.Put(Table::kSamples, KeyOf("j/", {i}), std::string(300, 'v'));
  batch.Put(Table::kSamples, "big", std::string(8 << 20, 'b'));
  ASSERT_TRUE(store->CommitAndWait(std::move(batch)).ok());
  int rows = 0;
  ASSERT_TRUE(store
                  ->Scan(Table::kSamples, "j/",
                         [&](absl::string_view, absl::string_view value) {
                           rows += value.size() == 300 ? 1 : 0;
                           return true;
                         })
                  .ok());
  EXPECT_EQ(rows, 20'000);
  EXPECT_EQ(store->Get(Table::kSamples, "big").value_or("").size(), size_t{8} << 20);
}

TEST_F(PostgresTest, ADataFolderOfItsOwnIsRefused) {
  const auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  const ScratchDir other;
  PostgresOptions options = options_;
  options.data_dir = other.path();
  const absl::Status refused = ConnectPostgres(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the same --data-dir"));
}

TEST_F(PostgresTest, AFolderWithASqliteStoreIsRefused) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("state.db"), "rows").ok());
  auto lead = ConnectPostgres(options_);
  ASSERT_TRUE(lead.ok()) << lead.status();
  const absl::Status refused = (*lead)->Try().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("SQLite"));
}

TEST_F(PostgresTest, AnEarlierReleasesSchemaIsMigratedByWhoLeadsFirst) {
  auto lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  auto store = Open(*lead);
  ASSERT_NE(store, nullptr);
  ASSERT_TRUE(Put(*store, "job", "as it was").ok());
  store.reset();
  lead.reset();
  // As version 1 left it: without quotas.
  (void)Sql("DROP TABLE quotas; UPDATE schema_version SET version = 1");
  lead = TakeLead(options_);
  ASSERT_NE(lead, nullptr);
  EXPECT_EQ(Sql("SELECT version FROM schema_version"), absl::StrCat(kSchemaVersion));
  EXPECT_EQ(Sql("SELECT count(*) FROM schema_version"), "1");
  store = Open(*lead);
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->Get(Table::kJobs, "job").value_or("none"), "as it was");
  WriteBatch batch;
  batch.Put(Table::kQuotas, "default/", "new");
  EXPECT_TRUE(store->CommitAndWait(std::move(batch)).ok());
  EXPECT_EQ(store->Get(Table::kQuotas, "default/").value_or("none"), "new");
}

TEST_F(PostgresTest, ALaterReleasesSchemaIsRefused) {
  ASSERT_NE(TakeLead(options_), nullptr);
  (void)Sql(absl::StrCat("UPDATE schema_version SET version = ", kSchemaVersion + 1));
  absl::Status refused;
  Until(
      [&] {
        auto lead = ConnectPostgres(options_);
        const auto leads = lead.ok() ? (*lead)->Try() : absl::StatusOr<bool>(lead.status());
        refused = leads.status();
        return !refused.ok() || *leads;
      },
      "the lead is free");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
}

// Rolling update of the two: the one that stands by, of the release before, could not take over any more.
TEST_F(PostgresTest, WhoStandsByEndsWhenTheLeadersReleaseHasMigrated) {
  const auto leads = TakeLead(options_);
  ASSERT_NE(leads, nullptr);
  auto stands_by = ConnectPostgres(options_);
  ASSERT_TRUE(stands_by.ok()) << stands_by.status();
  EXPECT_FALSE((*stands_by)->Try().value_or(true));
  (void)Sql(absl::StrCat("UPDATE schema_version SET version = ", kSchemaVersion + 1));
  const absl::Status told = (*stands_by)->Try().status();
  EXPECT_EQ(told.code(), absl::StatusCode::kFailedPrecondition) << told;
  EXPECT_THAT(std::string(told.message()), HasSubstr("of a later release"));
  EXPECT_EQ(ConnectPostgres(options_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(PostgresTest, AServerThatIsNotThereIsUnavailable) {
  options_.uri = absl::StrCat("postgresql://rlhf@127.0.0.1:", FreeLoopbackPort().value_or(0), "/postgres");
  const absl::Status status = ConnectPostgres(options_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(ReasonOf(status), v1::STORE_UNAVAILABLE);
}

TEST(PostgresUriTest, SecretsComeFromFiles) {
  EXPECT_TRUE(CheckPostgresUri("postgresql://rlhf@db/rlhf?passfile=/etc/rlhf/pgpass&sslmode=verify-full").ok());
  EXPECT_TRUE(CheckPostgresUri("postgresql:///rlhf?host=/run/postgresql").ok());
  const absl::Status secret = CheckPostgresUri("postgresql://rlhf:secret@db/rlhf");
  EXPECT_EQ(secret.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(secret.message()), HasSubstr("passfile"));
  EXPECT_THAT(std::string(secret.message()), testing::Not(HasSubstr("secret")));
  for (const char* bad : {"mysql://db/rlhf", "rlhf", "postgresql://db/rlhf?nonsense=1"})
    EXPECT_EQ(CheckPostgresUri(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
}

}  // namespace
}  // namespace rlhf::coordinator
