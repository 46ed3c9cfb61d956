// One writer thread and session; batches that arrive within a short window share a transaction. One reader session.
#include "coordinator/store/postgres_store.h"

#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/store/postgres_connection.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kPostgresGather = absl::Milliseconds(2);
constexpr absl::Duration kPostgresPatience = absl::Seconds(30);
constexpr size_t kPostgresPage = 500;

std::string StatementOf(absl::string_view what, Table table) {
  return absl::StrCat(what, "_", kTableNames[static_cast<int>(table)]);
}

class PostgresStore final : public StateStore {
 public:
  PostgresStore(const PostgresOptions& options, int64_t epoch)
      : options_(options),
        // Held until the transaction ends: the next leader's epoch waits for it.
        begin_(absl::StrCat("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT 1 FROM leader WHERE epoch = ", epoch,
                            " FOR SHARE")),
        epoch_(epoch) {}
  ~PostgresStore() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Open() {
    RLHF_ASSIGN_OR_RETURN(writer_, Session("writer"));
    RLHF_RETURN_IF_ERROR(CheckDurability());
    for (const char* table : kTableNames) {
      RLHF_RETURN_IF_ERROR(
          writer_->Prepare(absl::StrCat("put_", table), absl::StrCat("INSERT INTO ", table,
                                                                     " VALUES ($1, $2) ON CONFLICT (key) DO UPDATE "
                                                                     "SET value = EXCLUDED.value")));
      RLHF_RETURN_IF_ERROR(
          writer_->Prepare(absl::StrCat("erase_", table), absl::StrCat("DELETE FROM ", table, " WHERE key = $1")));
      RLHF_RETURN_IF_ERROR(writer_->Prepare(absl::StrCat("erase_all_", table),
                                            absl::StrCat("DELETE FROM ", table, " WHERE key >= $1 AND key < $2")));
    }
    // By process and start, so that the next leader ends this session and no other.
    RLHF_ASSIGN_OR_RETURN(
        const PostgresConnection::Rows registered,
        writer_->Run(absl::StrCat("UPDATE leader SET writer_pid = pg_backend_pid(), writer_start = (SELECT "
                                  "backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) WHERE epoch = ",
                                  epoch_, " RETURNING 1")));
    if (registered.empty())
      return absl::AbortedError(absl::StrCat("epoch ", epoch_, " is over: another coordinator leads"));
    {
      absl::MutexLock lock(&reader_mu_);
      RLHF_RETURN_IF_ERROR(OpenReader());
    }
    thread_ = std::thread([this] { Write(); });
    return absl::OkStatus();
  }

  void Enqueue(WriteBatch batch, Committed done) override {
    absl::MutexLock lock(&mu_);
    queue_.emplace_back(std::move(batch), std::move(done));
  }
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    return Pages(table, prefix, prefix, "from", fn);
  }
  absl::Status ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                         absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    if (after < prefix) return Scan(table, prefix, fn);
    return Pages(table, prefix, after, "after", fn);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    RLHF_ASSIGN_OR_RETURN(PostgresConnection::Rows rows, Read(StatementOf("get", table), {key}));
    if (rows.empty()) return absl::NotFoundError(absl::StrCat(kTableNames[static_cast<int>(table)], ": no such row"));
    return std::move(rows[0][0]);
  }
  absl::StatusOr<std::string> LastKey(Table table, absl::string_view prefix) override {
    // Keys with the prefix come before its successor: the prefix with its last byte that is not 255 grown by one.
    std::string end(prefix);
    while (!end.empty() && end.back() == '\xff') end.pop_back();
    if (!end.empty()) end.back() = static_cast<char>(end.back() + 1);
    absl::StatusOr<PostgresConnection::Rows> rows =
        end.empty() ? Read(StatementOf("last", table), {}) : Read(StatementOf("lastbefore", table), {end});
    RLHF_RETURN_IF_ERROR(rows.status());
    if (rows->empty() || !absl::StartsWith((*rows)[0][0], prefix)) return absl::NotFoundError("no such row");
    return std::move((*rows)[0][0]);
  }

 private:
  using Items = std::deque<std::pair<WriteBatch, Committed>>;

  absl::StatusOr<std::unique_ptr<PostgresConnection>> Session(absl::string_view purpose) const {
    RLHF_ASSIGN_OR_RETURN(
        auto session,
        PostgresConnection::Open(options_.uri, absl::StrCat("rlhf-coordinator ", purpose, " ", options_.schema),
                                 kPostgresPatience));
    RLHF_RETURN_IF_ERROR(
        session->Run(absl::StrCat("SET client_min_messages = warning; SET search_path = ", options_.schema)).status());
    return session;
  }

  // An acknowledged write is on the server's disk, whatever the server's default says. Stricter ones (remote_apply,
  // remote_write) stay: the operator's standby servers want them.
  absl::Status CheckDurability() {
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows fsync, writer_->Run("SHOW fsync"));
    if (fsync[0][0] != "on") {
      return absl::FailedPreconditionError(
          "the PostgreSQL server runs with fsync = off: what it acknowledges is lost with its power; turn fsync on");
    }
    return writer_
        ->Run(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') IN ('off', 'local')")
        .status();
  }

  absl::Status OpenReader() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reader_mu_) {
    reader_.reset();
    RLHF_ASSIGN_OR_RETURN(auto reader, Session("reader"));
    for (const char* table : kTableNames) {
      const auto prepare = [&](const char* what, const std::string& columns, const std::string& rest) {
        return reader->Prepare(absl::StrCat(what, "_", table),
                               absl::StrCat("SELECT ", columns, " FROM ", table, " ", rest));
      };
      const std::string page = absl::StrCat("ORDER BY key LIMIT ", kPostgresPage);
      RLHF_RETURN_IF_ERROR(prepare("get", "value", "WHERE key = $1"));
      RLHF_RETURN_IF_ERROR(prepare("from", "key, value", "WHERE key >= $1 " + page));
      RLHF_RETURN_IF_ERROR(prepare("after", "key, value", "WHERE key > $1 " + page));
      RLHF_RETURN_IF_ERROR(prepare("last", "key", "ORDER BY key DESC LIMIT 1"));
      RLHF_RETURN_IF_ERROR(prepare("lastbefore", "key", "WHERE key < $1 ORDER BY key DESC LIMIT 1"));
    }
    reader_ = std::move(reader);
    return absl::OkStatus();
  }

  // A reader that was cut off is replaced once; a writer never is.
  absl::StatusOr<PostgresConnection::Rows> Read(const std::string& statement,
                                                const std::vector<absl::string_view>& values) {
    absl::MutexLock lock(&reader_mu_);
    if (reader_ != nullptr) {
      absl::StatusOr<PostgresConnection::Rows> rows = reader_->Query(statement, values);
      if (rows.ok()) return rows;
      spdlog::warn("{}; reading over a new connection", std::string(rows.status().message()));
    }
    RLHF_RETURN_IF_ERROR(OpenReader());
    return reader_->Query(statement, values);
  }

  absl::Status Pages(Table table, absl::string_view prefix, absl::string_view start, const char* what,
                     absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) {
    std::string at(start);
    while (true) {
      RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows rows, Read(StatementOf(what, table), {at}));
      for (const std::vector<std::string>& row : rows) {
        if (!absl::StartsWith(row[0], prefix) || !fn(row[0], row[1])) return absl::OkStatus();
      }
      if (rows.size() < kPostgresPage) return absl::OkStatus();
      at = rows.back()[0];
      what = "after";
    }
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty() || stopping_; }

  void Write() {
    while (true) {
      Items items;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &PostgresStore::HasWork));
        if (queue_.empty()) return;
        if (!stopping_) mu_.AwaitWithTimeout(absl::Condition(&stopping_), kPostgresGather);
        items.swap(queue_);
      }
      // As in the SQLite store: memory is ahead of a database that refused, so nothing more is acknowledged.
      if (failure_.ok()) {
        failure_ = Apply(items);
        if (!failure_.ok()) {
          spdlog::error("{}; no write is acknowledged from now on: the next start goes on from what is committed",
                        std::string(failure_.message()));
        }
      }
      for (auto& [batch, done] : items) done(failure_);
    }
  }

  absl::Status Apply(const Items& items) {
    std::vector<PostgresConnection::Statement> statements;
    std::deque<std::string> ends;  // what statements refer to and no batch holds
    for (const auto& [batch, done] : items) {
      for (const WriteBatch::Op& op : batch.ops) {
        if (op.all) {
          statements.push_back({StatementOf("erase_all", op.table), {op.key, ends.emplace_back(AfterPrefix(op.key))}});
        } else if (op.erase) {
          statements.push_back({StatementOf("erase", op.table), {op.key}});
        } else {
          statements.push_back({StatementOf("put", op.table), {op.key, op.value}});
        }
      }
    }
    RLHF_FAILPOINT("store/before_commit");
    RLHF_ASSIGN_OR_RETURN(const PostgresConnection::Rows leads, writer_->Run(begin_));
    if (leads.empty()) {
      return WithReason(absl::UnavailableError(absl::StrCat("another coordinator leads: epoch ", epoch_, " is over")),
                        v1::NOT_LEADING);
    }
    RLHF_RETURN_IF_ERROR(writer_->Commit(statements));
    RLHF_FAILPOINT("store/after_commit");
    return absl::OkStatus();
  }

  const PostgresOptions options_;
  const std::string begin_;
  const int64_t epoch_;
  std::unique_ptr<PostgresConnection> writer_;  // the writer thread's alone, with failure_
  absl::Status failure_;
  absl::Mutex reader_mu_;
  std::unique_ptr<PostgresConnection> reader_ ABSL_GUARDED_BY(reader_mu_);
  mutable absl::Mutex mu_;
  Items queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenPostgresStore(const PostgresOptions& options, int64_t epoch) {
  auto store = std::make_unique<PostgresStore>(options, epoch);
  RLHF_RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace rlhf::coordinator
