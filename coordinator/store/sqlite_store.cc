// One writer thread and connection; batches that arrive within a short window share a transaction. One reader
// connection.
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kGather = absl::Milliseconds(2);  // at most 5: what a write may wait for others
constexpr size_t kScanPage = 500;
constexpr size_t kFirstScanPage = 16;          // most scans want a few rows
constexpr uint64_t kRoomToMigrate = 16 << 20;  // beside the copy: tables, and the log that is written ahead
constexpr const auto& kTables = kTableNames;

absl::Status ErrorOf(sqlite3* db, absl::string_view what) {
  return WithReason(absl::UnavailableError(absl::StrCat("state store: ", what, ": ", sqlite3_errmsg(db))),
                    v1::STORE_UNAVAILABLE);
}

// Rows have prompts, judgements and the secret of pseudonyms: only their owner reads them, whatever the umask. SQLite
// gives the files beside it (-wal, -shm) the same mode. No descriptor of a file that exists is opened and closed: that
// would end the locks of this process's other connections.
void MakePrivate(const std::string& path) {
  const int made = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (made >= 0) {
    close(made);
    return;
  }
  for (const char* suffix : {"", "-wal", "-shm"}) (void)chmod(absl::StrCat(path, suffix).c_str(), 0600);
}

class Connection {
 public:
  ~Connection() {
    for (sqlite3_stmt* statement : statements_) sqlite3_finalize(statement);
    sqlite3_close_v2(db_);
  }
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const std::string& path) {
    auto connection = std::make_unique<Connection>();
    MakePrivate(path);
    if (sqlite3_open_v2(path.c_str(), &connection->db_,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr) != SQLITE_OK) {
      return ErrorOf(connection->db_, absl::StrCat("cannot open ", path));
    }
    sqlite3_busy_timeout(connection->db_, 10'000);
    for (const char* pragma : {"PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA wal_autocheckpoint=4000",
                               "PRAGMA cache_size=-65536"}) {
      RLHF_RETURN_IF_ERROR(connection->Execute(pragma));
    }
    return connection;
  }
  absl::Status Execute(const std::string& sql) {
    if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) return ErrorOf(db_, sql);
    return absl::OkStatus();
  }
  // Prepared once; lives as long as the connection.
  absl::StatusOr<sqlite3_stmt*> Prepare(const std::string& sql) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(db_, sql.c_str(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &statement,
                           nullptr) != SQLITE_OK) {
      return ErrorOf(db_, sql);
    }
    statements_.push_back(statement);
    return statement;
  }
  absl::StatusOr<int> Integer(const std::string& sql) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK) return ErrorOf(db_, sql);
    const int step = sqlite3_step(statement);
    const int value = step == SQLITE_ROW ? sqlite3_column_int(statement, 0) : 0;
    sqlite3_finalize(statement);
    if (step != SQLITE_ROW) return ErrorOf(db_, sql);
    return value;
  }
  sqlite3* db() { return db_; }

 private:
  sqlite3* db_ = nullptr;
  std::vector<sqlite3_stmt*> statements_;
};

void BindBlob(sqlite3_stmt* statement, int index, absl::string_view bytes) {
  // An empty blob needs a non-null pointer, or SQLite binds NULL.
  sqlite3_bind_blob64(statement, index, bytes.empty() ? "" : bytes.data(), bytes.size(), SQLITE_STATIC);
}

std::string ColumnBlob(sqlite3_stmt* statement, int column) {
  const auto* data = static_cast<const char*>(sqlite3_column_blob(statement, column));
  return data == nullptr ? std::string() : std::string(data, sqlite3_column_bytes(statement, column));
}

// A copy as of now; complete and on disk (finishing a backup commits, and syncs, the copy), or not there.
absl::Status CopyTo(Connection& connection, const std::string& path) {
  const std::string partial = absl::StrCat(path, ".partial");
  std::error_code ignored;
  std::filesystem::remove(partial, ignored);
  MakePrivate(partial);
  sqlite3* copy = nullptr;
  absl::Status status;
  if (sqlite3_open_v2(partial.c_str(), &copy, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                      nullptr) != SQLITE_OK) {
    status = ErrorOf(copy, absl::StrCat("cannot make ", partial));
  } else {
    sqlite3_backup* backup = sqlite3_backup_init(copy, "main", connection.db(), "main");
    // All pages in one step: in WAL mode a reader does not hold up the writer.
    if (backup == nullptr || sqlite3_backup_step(backup, -1) != SQLITE_DONE) status = ErrorOf(copy, "back up");
    if (backup != nullptr && sqlite3_backup_finish(backup) != SQLITE_OK && status.ok())
      status = ErrorOf(copy, "back up");
  }
  sqlite3_close_v2(copy);
  if (!status.ok()) {
    std::filesystem::remove(partial, ignored);
    return status;
  }
  std::error_code error;
  std::filesystem::rename(partial, path, error);
  if (error) return absl::UnavailableError(absl::StrCat("cannot rename ", partial, ": ", error.message()));
  return FsyncDir(std::filesystem::path(path).parent_path().string());
}

// Whether the copy fits beside the file: what a migration then writes itself is small.
absl::Status CheckRoomForCopy(Connection& connection, const std::string& path) {
  RLHF_ASSIGN_OR_RETURN(const int64_t pages, connection.Integer("PRAGMA page_count"));
  RLHF_ASSIGN_OR_RETURN(const int64_t page_size, connection.Integer("PRAGMA page_size"));
  const std::string folder = std::filesystem::path(path).parent_path().string();
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(folder.empty() ? "." : folder, error);
  const auto needed = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_size) + kRoomToMigrate;
  if (error || space.available >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat(path, ": it is of an earlier release and is copied before it is changed, for which ",
                   (needed >> 20) + 1, " MiB are needed in its folder; found ", space.available >> 20,
                   ": make room and start again, or go on with the release before. Nothing was changed"));
}

// Brings an older file to this schema, after a copy beside it. Version 1 had no quotas. Up to version 2 a step
// was issued whole: a coordinator of then does not go on with a step that is issued in part.
absl::Status Migrate(Connection& connection, const std::string& path) {
  RLHF_ASSIGN_OR_RETURN(const int version, connection.Integer("PRAGMA user_version"));
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": schema version ", version,
                                                      " is of a later release; this one knows up to ", kSchemaVersion,
                                                      ": run the release that wrote it"));
  }
  if (version == kSchemaVersion) return absl::OkStatus();
  if (version > 0) {
    const std::string copy = absl::StrCat(path, ".before-v", kSchemaVersion);
    RLHF_RETURN_IF_ERROR(CheckRoomForCopy(connection, path));
    RLHF_RETURN_IF_ERROR(Annotate(CopyTo(connection, copy), "backing up before a migration"));
    spdlog::info("{} is migrated from schema version {} to {}; as it was: {}", path, version, kSchemaVersion, copy);
  }
  RLHF_RETURN_IF_ERROR(connection.Execute("BEGIN IMMEDIATE"));
  for (const char* table : kTables) {
    RLHF_RETURN_IF_ERROR(connection.Execute(absl::StrCat(
        "CREATE TABLE IF NOT EXISTS ", table, " (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")));
  }
  RLHF_RETURN_IF_ERROR(connection.Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion)));
  return connection.Execute("COMMIT");
}

class SqliteStore final : public StateStore {
 public:
  static absl::StatusOr<std::unique_ptr<StateStore>> Open(const std::string& path) {
    auto store = std::make_unique<SqliteStore>();
    store->path_ = path;
    RLHF_ASSIGN_OR_RETURN(store->writer_, Connection::Open(path));
    RLHF_RETURN_IF_ERROR(Migrate(*store->writer_, path));
    absl::MutexLock lock(&store->reader_mu_);
    RLHF_ASSIGN_OR_RETURN(store->reader_, Connection::Open(path));
    for (int i = 0; i < kNumTables; ++i) {
      RLHF_ASSIGN_OR_RETURN(store->put_[i], store->writer_->Prepare(absl::StrCat(
                                                "INSERT INTO ", kTables[i],
                                                " VALUES (?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2")));
      RLHF_ASSIGN_OR_RETURN(store->erase_[i],
                            store->writer_->Prepare(absl::StrCat("DELETE FROM ", kTables[i], " WHERE key = ?1")));
      RLHF_ASSIGN_OR_RETURN(store->erase_all_[i], store->writer_->Prepare(absl::StrCat(
                                                      "DELETE FROM ", kTables[i], " WHERE key >= ?1 AND key < ?2")));
      RLHF_ASSIGN_OR_RETURN(store->get_[i],
                            store->reader_->Prepare(absl::StrCat("SELECT value FROM ", kTables[i], " WHERE key = ?1")));
      RLHF_ASSIGN_OR_RETURN(store->from_[i],
                            store->reader_->Prepare(absl::StrCat("SELECT key, value FROM ", kTables[i],
                                                                 " WHERE key >= ?1 ORDER BY key LIMIT ", kScanPage)));
      RLHF_ASSIGN_OR_RETURN(store->after_[i],
                            store->reader_->Prepare(absl::StrCat("SELECT key, value FROM ", kTables[i],
                                                                 " WHERE key > ?1 ORDER BY key LIMIT ", kScanPage)));
      RLHF_ASSIGN_OR_RETURN(store->last_[i], store->reader_->Prepare(absl::StrCat("SELECT key FROM ", kTables[i],
                                                                                  " ORDER BY key DESC LIMIT 1")));
      RLHF_ASSIGN_OR_RETURN(store->last_before_[i],
                            store->reader_->Prepare(absl::StrCat("SELECT key FROM ", kTables[i],
                                                                 " WHERE key < ?1 ORDER BY key DESC LIMIT 1")));
    }
    store->thread_ = std::thread([raw = store.get()] { raw->Write(); });
    return store;
  }
  ~SqliteStore() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  void Enqueue(WriteBatch batch, Committed done) override {
    absl::MutexLock lock(&mu_);
    queue_.push_back({std::move(batch), std::move(done)});
  }
  absl::Status Scan(Table table, absl::string_view prefix,
                    absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    return ScanPages(table, prefix, prefix, /*inclusive=*/true, fn);
  }
  absl::Status ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                         absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) override {
    if (after < prefix) return Scan(table, prefix, fn);
    return ScanPages(table, prefix, after, /*inclusive=*/false, fn);
  }
  absl::StatusOr<std::string> LastKey(Table table, absl::string_view prefix) override {
    const std::string end = AfterPrefix(prefix);
    absl::MutexLock lock(&reader_mu_);
    sqlite3_stmt* statement = (end.empty() ? last_ : last_before_)[static_cast<int>(table)];
    if (!end.empty()) BindBlob(statement, 1, end);
    const int step = sqlite3_step(statement);
    absl::StatusOr<std::string> result = absl::NotFoundError("no such row");
    if (step == SQLITE_ROW) {
      std::string key = ColumnBlob(statement, 0);
      if (absl::string_view(key).substr(0, prefix.size()) == prefix) result = std::move(key);
    } else if (step != SQLITE_DONE) {
      result = ErrorOf(reader_->db(), "read");
    }
    sqlite3_reset(statement);
    return result;
  }
  absl::Status BackUp(const std::string& path) override {
    // A connection of its own: scans go on meanwhile.
    RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection, Connection::Open(path_));
    return CopyTo(*connection, path);
  }
  absl::StatusOr<std::string> Get(Table table, absl::string_view key) override {
    absl::MutexLock lock(&reader_mu_);
    sqlite3_stmt* statement = get_[static_cast<int>(table)];
    BindBlob(statement, 1, key);
    const int step = sqlite3_step(statement);
    absl::StatusOr<std::string> result =
        step == SQLITE_ROW    ? absl::StatusOr<std::string>(ColumnBlob(statement, 0))
        : step == SQLITE_DONE ? absl::NotFoundError(absl::StrCat(kTables[static_cast<int>(table)], ": no such row"))
                              : ErrorOf(reader_->db(), "read");
    sqlite3_reset(statement);
    return result;
  }

 private:
  struct Item {
    WriteBatch batch;
    Committed done;
  };

  // Pages are read under the lock and handed out without it, so that fn may read too.
  absl::Status ScanPages(Table table, absl::string_view prefix, absl::string_view start, bool inclusive,
                         absl::FunctionRef<bool(absl::string_view, absl::string_view)> fn) {
    std::string at(start);
    for (size_t rows = kFirstScanPage;; rows = std::min(4 * rows, kScanPage)) {
      std::vector<std::pair<std::string, std::string>> page;
      {
        absl::MutexLock lock(&reader_mu_);
        sqlite3_stmt* statement = inclusive ? from_[static_cast<int>(table)] : after_[static_cast<int>(table)];
        BindBlob(statement, 1, at);
        int step = SQLITE_ROW;
        while (page.size() < rows && (step = sqlite3_step(statement)) == SQLITE_ROW) {
          std::string key = ColumnBlob(statement, 0);
          if (absl::string_view(key).substr(0, prefix.size()) != prefix) break;
          page.emplace_back(std::move(key), ColumnBlob(statement, 1));
        }
        sqlite3_reset(statement);
        if (step != SQLITE_ROW && step != SQLITE_DONE) return ErrorOf(reader_->db(), "scan");
      }
      for (const auto& [key, value] : page) {
        if (!fn(key, value)) return absl::OkStatus();
      }
      if (page.size() < rows) return absl::OkStatus();
      at = page.back().first;
      inclusive = false;
    }
  }

  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty() || stopping_; }

  void Write() {
    while (true) {
      std::deque<Item> items;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &SqliteStore::HasWork));
        if (queue_.empty()) return;
        // What arrives meanwhile shares the transaction; Await's own wake-ups do not end the window.
        if (!stopping_) mu_.AwaitWithTimeout(absl::Condition(&stopping_), kGather);
        items.swap(queue_);
      }
      // A failed transaction leaves memory ahead of the disk: nothing more is acknowledged until a restart reads the
      // disk again.
      if (failure_.ok()) failure_ = Apply(items);
      for (Item& item : items) item.done(failure_);
    }
  }

  absl::Status Apply(std::deque<Item>& items) {
    RLHF_FAILPOINT("store/before_commit");
    absl::Status status = writer_->Execute("BEGIN IMMEDIATE");
    for (auto item = items.begin(); status.ok() && item != items.end(); ++item) {
      for (const WriteBatch::Op& op : item->batch.ops) {
        sqlite3_stmt* statement = (op.all ? erase_all_ : op.erase ? erase_ : put_)[static_cast<int>(op.table)];
        const std::string end = op.all ? AfterPrefix(op.key) : std::string();
        BindBlob(statement, 1, op.key);
        if (op.all || !op.erase) BindBlob(statement, 2, op.all ? end : op.value);
        const int step = sqlite3_step(statement);
        if (step != SQLITE_DONE) status = ErrorOf(writer_->db(), "write");
        sqlite3_reset(statement);
        if (!status.ok()) break;
      }
    }
    if (status.ok() && !RLHF_FAILPOINT_OK("store/io_error"))
      status = absl::UnavailableError("state store: write: disk I/O error (failpoint)");
    if (status.ok()) status = writer_->Execute("COMMIT");
    if (!status.ok()) {
      spdlog::error("{}; no write is acknowledged from now on: free the disk and restart",
                    std::string(status.message()));
      (void)writer_->Execute("ROLLBACK");
      return status;
    }
    RLHF_FAILPOINT("store/after_commit");
    return absl::OkStatus();
  }

  std::string path_;
  std::unique_ptr<Connection> writer_;  // the writer thread's alone, with put_, erase_, erase_all_ and failure_
  sqlite3_stmt* put_[kNumTables] = {};
  sqlite3_stmt* erase_[kNumTables] = {};
  sqlite3_stmt* erase_all_[kNumTables] = {};
  absl::Status failure_;
  absl::Mutex reader_mu_;
  std::unique_ptr<Connection> reader_ ABSL_PT_GUARDED_BY(reader_mu_);
  sqlite3_stmt* get_[kNumTables] = {};  // used under reader_mu_, as from_ and after_
  sqlite3_stmt* from_[kNumTables] = {};
  sqlite3_stmt* after_[kNumTables] = {};
  sqlite3_stmt* last_[kNumTables] = {};
  sqlite3_stmt* last_before_[kNumTables] = {};
  mutable absl::Mutex mu_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenSqliteStore(const std::string& path) {
  return SqliteStore::Open(path);
}

}  // namespace rlhf::coordinator
