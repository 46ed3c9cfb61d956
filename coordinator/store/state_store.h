// All durable rows, behind one interface. A table maps byte-string keys to serialised rlhf.v1 state messages, ordered
// by key.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf::coordinator {

enum class Table {
  kMeta,
  kJobs,
  kSamples,
  kEvents,
  kArtifacts,
  kAliases,
  kRequests,
  kTokens,
  kFeedbackTasks,
  kComparisons,
  kGates,
  kAudit,
  kQuotas
};
inline constexpr int kNumTables = 13;
// As databases know them.
inline constexpr const char* kTableNames[kNumTables] = {
    "meta",   "jobs",           "samples",     "events", "artifacts", "aliases", "requests",
    "tokens", "feedback_tasks", "comparisons", "gates",  "audit",     "quotas"};

struct WriteBatch {
  struct Op {
    Table table;
    std::string key;
    std::string value;
    bool erase = false;
    bool all = false;  // erase: every key that begins with `key`
  };
  // What gives rows their place only when the batch is committed: a chain of them, whatever becomes of other batches.
  class Sealer {
   public:
    virtual ~Sealer() = default;
    virtual void Seal(std::vector<Op>* ops) = 0;
  };
  std::vector<Op> ops;
  Sealer* sealer = nullptr;  // not owned
  void Put(Table table, std::string key, std::string value) {
    ops.push_back({table, std::move(key), std::move(value), false});
  }
  void Erase(Table table, std::string key) { ops.push_back({table, std::move(key), {}, true}); }
  // Every row whose key begins with `prefix`, which is not empty.
  void EraseAll(Table table, std::string prefix) { ops.push_back({table, std::move(prefix), {}, true, true}); }
  bool empty() const { return ops.empty(); }
};

// Thread-safe. Batches become durable in the order of the Commit calls, each atomically.
class StateStore {
 public:
  using Committed = absl::AnyInvocable<void(absl::Status)>;
  virtual ~StateStore() = default;
  // Enqueues; `done` runs on the store's thread once the batch (and every earlier one) is durable. Writes that come
  // together share a transaction. Unavailable (reason STORE_UNAVAILABLE) on a full or failing disk: nothing of the
  // batch was kept, and every later Commit fails alike until the store is opened anew.
  void Commit(WriteBatch batch, Committed done) {
    if (WriteBatch::Sealer* const sealer = std::exchange(batch.sealer, nullptr)) sealer->Seal(&batch.ops);
    Enqueue(std::move(batch), std::move(done));
  }
  absl::Status CommitAndWait(WriteBatch batch);
  // Committed rows only. fn returns false to stop.
  virtual absl::Status Scan(Table table, absl::string_view prefix,
                            absl::FunctionRef<bool(absl::string_view key, absl::string_view value)> fn) = 0;
  // As Scan, but only rows after a key. The default filters a whole scan.
  virtual absl::Status ScanAfter(Table table, absl::string_view prefix, absl::string_view after,
                                 absl::FunctionRef<bool(absl::string_view key, absl::string_view value)> fn);
  // NotFound when absent.
  virtual absl::StatusOr<std::string> Get(Table table, absl::string_view key) = 0;
  // The greatest key with the prefix; NotFound when there is none. The default scans.
  virtual absl::StatusOr<std::string> LastKey(Table table, absl::string_view prefix);
  // A consistent copy of all committed rows as a new file, made while writes go on. Blocks. Unimplemented for a store
  // that is not a file.
  virtual absl::Status BackUp(const std::string& path);

 protected:
  // Commit, of a batch that is sealed.
  virtual void Enqueue(WriteBatch batch, Committed done) = 0;
};

// Of the rows; a store of an older version is brought to it when it is opened.
inline constexpr int kSchemaVersion = 3;
// SQLite: WAL, synchronous=FULL, one table each. Before a migration the file is copied to PATH.before-vN.
absl::StatusOr<std::unique_ptr<StateStore>> OpenSqliteStore(const std::string& path);

// The first key after all that begin with the prefix; empty where there is none.
std::string AfterPrefix(absl::string_view prefix);

// Big-endian key parts, so that key order is numeric order.
std::string KeyOf(absl::string_view prefix, std::initializer_list<uint64_t> numbers);

}  // namespace rlhf::coordinator
