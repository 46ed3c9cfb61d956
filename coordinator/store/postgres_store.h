// The optional second store: rows in PostgreSQL, for operators who run one already. Two coordinators may then be
// started on one database and one shared data folder: one leads, the other stands by.
//
// Who leads holds a session's advisory lock, on a connection of its own that is watched. Each lead has an epoch, a
// number that only grows, in a row of the database; every transaction that writes checks the row, and holds it until it
// has ended, so that nothing of a former leader is committed once the next one has its epoch. A session that says
// nothing for `idle` is ended by the server: who hangs, or is cut off, loses the lock with it.
//
// A build without libpq has these functions too; they answer Unimplemented.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/store/state_store.h"

namespace rlhf::coordinator {

struct PostgresOptions {
  std::string uri;  // postgresql://USER@HOST/DATABASE?passfile=FILE; no password in it
  std::string data_dir;
  std::string schema = "rlhf";  // of its tables, made by the first leader; the lock is by this name
  absl::Duration idle = absl::Seconds(5);
};

// Thread-safe, save for Try.
class PostgresLead {
 public:
  virtual ~PostgresLead() = default;  // gives the lead up
  // Takes the lead if it is free; false while another coordinator has it. Ask again, every half second or so.
  // FailedPrecondition when database and data folder do not belong together, or the database's schema is of a later
  // release. Unavailable when the database cannot be asked: connect anew.
  virtual absl::StatusOr<bool> Try() = 0;
  // After Try returned true: whether the lead was lost since (its connection broke or did not answer, or the row names
  // another epoch). It does not come back: end the process, at once.
  virtual bool lost() const = 0;
  virtual int64_t epoch() const = 0;  // from 1; 0 before it leads
};

// InvalidArgument when the URI cannot be one, or has a password in it; Unimplemented in a build without libpq.
absl::Status CheckPostgresUri(const std::string& uri);
// Does not wait for the lead. Unavailable when the database cannot be reached; FailedPrecondition as Try.
absl::StatusOr<std::unique_ptr<PostgresLead>> ConnectPostgres(const PostgresOptions& options);
// The rows, for who leads with this epoch. Ends the session in which the former leader wrote. Beside the errors of
// OpenSqliteStore, Aborted when another epoch has begun. A transaction of another epoch's is refused, with reason
// NOT_LEADING, and every later Commit with it.
absl::StatusOr<std::unique_ptr<StateStore>> OpenPostgresStore(const PostgresOptions& options, int64_t epoch);

}  // namespace rlhf::coordinator
