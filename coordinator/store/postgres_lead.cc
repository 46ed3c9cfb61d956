#include <libpq-fe.h>

#include <atomic>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/store/postgres_connection.h"
#include "coordinator/store/postgres_store.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kTryPatience = absl::Seconds(5);
constexpr absl::Duration kBeginPatience = absl::Seconds(30);  // of what writes: tables, the epoch
constexpr int kAsksAnIdle = 6;  // so often within the time after which the server ends the session
constexpr char kStoreIdFile[] = "STORE_ID";

class PostgresLeadImpl final : public PostgresLead {
 public:
  explicit PostgresLeadImpl(const PostgresOptions& options) : options_(options) {}
  ~PostgresLeadImpl() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Open() {
    for (const char c : options_.schema) {
      if (!absl::ascii_islower(c) && !absl::ascii_isdigit(c) && c != '_') {
        return absl::InvalidArgumentError(
            absl::StrCat("schema: expected lower-case letters, digits and '_', found \"", options_.schema, "\""));
      }
    }
    RLHF_ASSIGN_OR_RETURN(
        connection_, PostgresConnection::Open(options_.uri, "rlhf-coordinator lead " + options_.schema, kTryPatience));
    RLHF_RETURN_IF_ERROR(
        connection_
            ->Run(absl::StrCat(
                "SET client_min_messages = warning; SET search_path = ", options_.schema,
                "; SET lock_timeout = 2000; SET idle_session_timeout = ", absl::ToInt64Milliseconds(options_.idle)))
            .status());
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows pid, connection_->Run("SELECT pg_backend_pid()"));
    pid_ = pid[0][0];
    // Also of who stands by: it must not find out when it is needed.
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows there,
                          connection_->Run("SELECT 1 WHERE to_regclass('leader') IS NOT NULL"));
    RLHF_RETURN_IF_ERROR(CheckVersion());
    return there.empty() ? absl::OkStatus() : CheckDataFolder();
  }

  absl::StatusOr<bool> Try() override {
    // Who leads may have been updated meanwhile: one that stands by could never take its place.
    RLHF_RETURN_IF_ERROR(CheckVersion());
    RLHF_ASSIGN_OR_RETURN(
        const PostgresConnection::Rows locked,
        connection_->Run(absl::StrCat("SELECT pg_try_advisory_lock(hashtextextended('rlhf-coordinator/",
                                      options_.schema, "', 0))")));
    if (locked[0][0] != "t") return false;
    // From here on nobody else changes tables or epoch.
    connection_->set_patience(kBeginPatience);
    RLHF_RETURN_IF_ERROR(MakeTables());
    RLHF_RETURN_IF_ERROR(CheckDataFolder());
    // The former leader's session may be within a transaction, which holds the row.
    RLHF_RETURN_IF_ERROR(connection_
                             ->Run("SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a, leader l "
                                   "WHERE a.pid = l.writer_pid AND a.backend_start = l.writer_start")
                             .status());
    const absl::Duration now = Clock::Real()->Now();
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows epoch,
                          connection_->Run("UPDATE leader SET epoch = epoch + 1, since = now() RETURNING epoch"));
    if (epoch.size() != 1 || !absl::SimpleAtoi(epoch[0][0], &epoch_))
      return absl::InternalError("the table leader has no row, or no number in it");
    spdlog::info("this coordinator leads: epoch {}", epoch_);
    connection_->set_patience(options_.idle * 2 / 3);
    thread_ = std::thread([this, now] { Watch(now); });
    return true;
  }
  bool lost() const override { return lost_; }
  int64_t epoch() const override { return epoch_; }

 private:
  absl::Status CheckVersion() {
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows there,
                          connection_->Run("SELECT 1 WHERE to_regclass('schema_version') IS NOT NULL"));
    return there.empty() ? absl::OkStatus() : FoundVersion().status();
  }

  // 0: no tables yet. FailedPrecondition when they are of a later release.
  absl::StatusOr<int> FoundVersion() {
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows found,
                          connection_->Run("SELECT COALESCE(MAX(version), 0) FROM schema_version"));
    int version = 0;
    if (absl::SimpleAtoi(found[0][0], &version) && version <= kSchemaVersion) return version;
    return absl::FailedPreconditionError(absl::StrCat("the database's schema version ", found[0][0],
                                                      " is of a later release; this one knows up to ", kSchemaVersion,
                                                      ": run the release that wrote it"));
  }

  absl::Status MakeTables() {
    RLHF_RETURN_IF_ERROR(connection_
                             ->Run(absl::StrCat("CREATE SCHEMA IF NOT EXISTS ", options_.schema,
                                                "; CREATE TABLE IF NOT EXISTS schema_version (version int NOT NULL)"))
                             .status());
    RLHF_ASSIGN_OR_RETURN(const int version, FoundVersion());
    if (version == kSchemaVersion) return absl::OkStatus();
    // Several statements at once are one transaction.
    std::string sql =
        "CREATE TABLE IF NOT EXISTS leader (one boolean PRIMARY KEY DEFAULT true CHECK (one), epoch bigint NOT NULL, "
        "store_id text NOT NULL, writer_pid int, writer_start timestamptz, since timestamptz);";
    for (const char* table : kTableNames)
      absl::StrAppend(&sql, "CREATE TABLE IF NOT EXISTS ", table, " (key bytea PRIMARY KEY, value bytea NOT NULL);");
    absl::StrAppend(&sql, "DELETE FROM schema_version; INSERT INTO schema_version VALUES (", kSchemaVersion, ")");
    return connection_->Run(sql).status();
  }

  // Rows name payloads in the data folder: a folder of its own would show only once it leads that all are missing.
  absl::Status CheckDataFolder() {
    const std::string path = absl::StrCat(options_.data_dir, "/", kStoreIdFile);
    const absl::StatusOr<std::string> file = ReadFile(path);
    const std::string here = file.ok() ? std::string(absl::StripAsciiWhitespace(*file)) : "";
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows row, connection_->Run("SELECT store_id FROM leader"));
    if (!row.empty() && row[0][0] == here) return absl::OkStatus();
    if (!row.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the data folder ", options_.data_dir, " is not the one of this database: expected ", path,
                       " to say ", row[0][0], ", found ", here.empty() ? "none" : here,
                       "; give all coordinators of a database the same --data-dir, on a volume that they share"));
    }
    if (std::filesystem::exists(options_.data_dir + "/state.db")) {
      return absl::FailedPreconditionError(absl::StrCat("the data folder ", options_.data_dir,
                                                        " holds a SQLite store, and this database nothing: rows are "
                                                        "not moved; give --data-dir an empty folder"));
    }
    std::string id = here;  // of a start that was cut off
    if (id.empty()) {
      absl::BitGen random;
      id = absl::StrFormat("%016x", absl::Uniform<uint64_t>(random));
      RLHF_RETURN_IF_ERROR(WriteFileDurably(path, id + "\n"));
    }
    if (id.size() > 64 || id.find_first_not_of("0123456789abcdef") != std::string::npos)
      return absl::FailedPreconditionError(absl::StrCat(path, ": expected hexadecimal digits, found other things"));
    return connection_->Run(absl::StrCat("INSERT INTO leader (epoch, store_id) VALUES (0, '", id, "')")).status();
  }

  std::string WhyLost() {
    const auto rows = connection_->Run(absl::StrCat(
        "SELECT epoch FROM leader WHERE pg_backend_pid() = ", pid_,
        " AND EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = ", pid_, ")"));
    if (!rows.ok()) return std::string(rows.status().message());
    if (rows->empty()) return "the session that held the lock is another one (is there a pooler in between?)";
    if ((*rows)[0][0] != absl::StrCat(epoch_)) return absl::StrCat("epoch ", (*rows)[0][0], " has begun");
    return "";
  }

  void Watch(absl::Duration answered) {
    while (true) {
      {
        absl::MutexLock lock(&mu_);
        if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), options_.idle / kAsksAnIdle)) return;
      }
      // After a stop the clock alone tells, sooner than the database does.
      const absl::Duration now = Clock::Real()->Now();
      const std::string why = now - answered > options_.idle ? absl::StrCat("it has not spoken to the database for ",
                                                                            absl::FormatDuration(now - answered))
                                                             : WhyLost();
      answered = now;
      if (why.empty()) continue;
      spdlog::critical("this coordinator does not lead any more (epoch {}): {}", epoch_, why);
      lost_ = true;
      return;
    }
  }

  const PostgresOptions options_;
  std::unique_ptr<PostgresConnection> connection_;  // of the watching thread once it runs
  std::string pid_;
  int64_t epoch_ = 0;
  std::atomic<bool> lost_{false};
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::Status CheckPostgresUri(const std::string& uri) {
  if (!absl::StartsWith(uri, "postgresql://") && !absl::StartsWith(uri, "postgres://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("store: expected sqlite or postgresql://USER@HOST/DATABASE, found \"", uri, "\""));
  }
  char* error = nullptr;
  PQconninfoOption* const parsed = PQconninfoParse(uri.c_str(), &error);
  if (parsed == nullptr) {
    const std::string why = error == nullptr ? "out of memory" : std::string(absl::StripAsciiWhitespace(error));
    PQfreemem(error);
    return absl::InvalidArgumentError(absl::StrCat("store: ", why));
  }
  bool password = false;
  for (const PQconninfoOption* option = parsed; option->keyword != nullptr; ++option)
    password = password || (absl::string_view(option->keyword) == "password" && option->val != nullptr);
  PQconninfoFree(parsed);
  if (!password) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "store: found a password in the URI, where every process of this machine can read it; put it into a file that "
      "only the coordinator can read, and name that: postgresql://USER@HOST/DATABASE?passfile=FILE");
}

absl::StatusOr<std::unique_ptr<PostgresLead>> ConnectPostgres(const PostgresOptions& options) {
  auto lead = std::make_unique<PostgresLeadImpl>(options);
  RLHF_RETURN_IF_ERROR(lead->Open());
  return lead;
}

}  // namespace rlhf::coordinator
