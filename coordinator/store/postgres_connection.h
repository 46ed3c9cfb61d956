// One session of a PostgreSQL server: bytes in, bytes out, nothing waits longer than the session's patience.
//
// Not thread-safe. Blocks. Every error is Unavailable (reason STORE_UNAVAILABLE) with the server's words; after one the
// session is broken and answers every further call alike, so that nobody goes on with half of what was sent.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct pg_conn;
struct pg_result;

namespace rlhf::coordinator {

class PostgresConnection {
 public:
  using Rows = std::vector<std::vector<std::string>>;
  struct Statement {
    std::string prepared;                   // its name
    std::vector<absl::string_view> values;  // bytea parameters; must outlive the call
  };

  // `uri` as libpq takes it: postgresql://USER@HOST/DATABASE?passfile=FILE. `purpose` is shown in pg_stat_activity.
  static absl::StatusOr<std::unique_ptr<PostgresConnection>> Open(const std::string& uri, const std::string& purpose,
                                                                  absl::Duration patience);
  ~PostgresConnection();
  void set_patience(absl::Duration patience) { patience_ = patience; }
  // One statement, or several with a ';' between them. Returns the rows of the last, as text.
  absl::StatusOr<Rows> Run(const std::string& sql);
  absl::Status Prepare(const std::string& name, const std::string& sql);
  // Values are bytea, in both directions.
  absl::StatusOr<Rows> Query(const std::string& prepared, const std::vector<absl::string_view>& values);
  // Statements that return nothing, in order, sent without waiting for each answer. Within a transaction that Run has
  // begun; ends it: COMMIT is the last thing sent, and OK means that the server has acknowledged it.
  absl::Status Commit(const std::vector<Statement>& statements);

 private:
  struct ClearResult {
    void operator()(pg_result* result) const;
  };
  using Result = std::unique_ptr<pg_result, ClearResult>;

  explicit PostgresConnection(absl::Duration patience) : patience_(patience) {}
  // The next result of what was sent; null at the end of a statement's. Sends what is left meanwhile.
  absl::StatusOr<Result> Next();
  absl::Status WaitForSocket(absl::Duration deadline, bool write);  // of the monotonic clock
  absl::Status Prepared(const std::string& name, const std::vector<absl::string_view>& values);
  absl::Status Failed(absl::string_view what);

  absl::Duration patience_;
  pg_conn* connection_ = nullptr;
  absl::Status broken_;
};

}  // namespace rlhf::coordinator
