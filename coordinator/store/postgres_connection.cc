#include "coordinator/store/postgres_connection.h"

#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr char kConnectSeconds[] = "3";

bool SucceededInPostgres(const PGresult* result) {
  const ExecStatusType status = PQresultStatus(result);
  return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_PIPELINE_SYNC;
}

PostgresConnection::Rows RowsOfResult(const PGresult* result) {
  PostgresConnection::Rows rows(static_cast<size_t>(PQntuples(result)));
  for (int i = 0; i < PQntuples(result); ++i) {
    for (int column = 0; column < PQnfields(result); ++column) {
      rows[static_cast<size_t>(i)].emplace_back(PQgetvalue(result, i, column),
                                                static_cast<size_t>(PQgetlength(result, i, column)));
    }
  }
  return rows;
}

}  // namespace

void PostgresConnection::ClearResult::operator()(pg_result* result) const {
  PQclear(result);
}

absl::Status PostgresConnection::Failed(absl::string_view what) {
  if (broken_.ok()) {
    broken_ = WithReason(absl::UnavailableError(absl::StrCat("PostgreSQL: ", what, ": ",
                                                             absl::StripAsciiWhitespace(PQerrorMessage(connection_)))),
                         v1::STORE_UNAVAILABLE);
  }
  return broken_;
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresConnection::Open(const std::string& uri,
                                                                             const std::string& purpose,
                                                                             absl::Duration patience) {
  std::unique_ptr<PostgresConnection> connection(new PostgresConnection(patience));
  // The URI is expanded where it stands: what it says itself wins over what comes before it.
  const char* const keywords[] = {"connect_timeout", "target_session_attrs", "dbname", "application_name", nullptr};
  const char* const values[] = {kConnectSeconds, "read-write", uri.c_str(), purpose.c_str(), nullptr};
  connection->connection_ = PQconnectdbParams(keywords, values, /*expand_dbname=*/1);
  if (PQstatus(connection->connection_) != CONNECTION_OK) return connection->Failed("cannot connect");
  if (PQsetnonblocking(connection->connection_, 1) != 0) return connection->Failed("cannot connect");
  return connection;
}

PostgresConnection::~PostgresConnection() {
  PQfinish(connection_);
}

absl::Status PostgresConnection::WaitForSocket(absl::Duration deadline, bool write) {
  while (true) {
    const absl::Duration left = deadline - Clock::Real()->Now();
    if (left <= absl::ZeroDuration())
      return Failed(absl::StrCat("no answer within ", absl::FormatDuration(patience_), " "));
    pollfd socket{};
    socket.fd = PQsocket(connection_);
    socket.events = static_cast<int16_t>(write ? POLLIN | POLLOUT : POLLIN);
    const int ready = poll(&socket, 1, static_cast<int>(std::max<int64_t>(1, absl::ToInt64Milliseconds(left))));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return Failed("cannot wait for the server");
  }
}

absl::StatusOr<PostgresConnection::Result> PostgresConnection::Next() {
  const absl::Duration deadline = Clock::Real()->Now() + patience_;
  while (true) {
    const int unsent = PQflush(connection_);
    if (unsent < 0) return Failed("cannot send");
    if (unsent == 0 && PQisBusy(connection_) == 0) return Result(PQgetResult(connection_));
    RLHF_RETURN_IF_ERROR(WaitForSocket(deadline, unsent > 0));
    if (PQconsumeInput(connection_) == 0) return Failed("the connection is lost");
  }
}

absl::StatusOr<PostgresConnection::Rows> PostgresConnection::Run(const std::string& sql) {
  RLHF_RETURN_IF_ERROR(broken_);
  if (PQsendQuery(connection_, sql.c_str()) != 1) return Failed(sql);
  Rows rows;
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const Result result, Next());
    if (result == nullptr) return rows;
    if (!SucceededInPostgres(result.get())) return Failed(sql);
    rows = RowsOfResult(result.get());
  }
}

absl::Status PostgresConnection::Prepare(const std::string& name, const std::string& sql) {
  RLHF_RETURN_IF_ERROR(broken_);
  if (PQsendPrepare(connection_, name.c_str(), sql.c_str(), 0, nullptr) != 1) return Failed(sql);
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const Result result, Next());
    if (result == nullptr) return absl::OkStatus();
    if (!SucceededInPostgres(result.get())) return Failed(sql);
  }
}

absl::Status PostgresConnection::Prepared(const std::string& name, const std::vector<absl::string_view>& values) {
  std::vector<const char*> bytes;
  std::vector<int> lengths;
  const std::vector<int> formats(values.size(), 1);
  for (const absl::string_view value : values) {
    bytes.push_back(value.empty() ? "" : value.data());  // a null pointer would be NULL, also for no bytes
    lengths.push_back(static_cast<int>(value.size()));
  }
  if (PQsendQueryPrepared(connection_, name.c_str(), static_cast<int>(values.size()), bytes.data(), lengths.data(),
                          formats.data(), /*resultFormat=*/1) != 1)
    return Failed(name);
  return absl::OkStatus();
}

absl::StatusOr<PostgresConnection::Rows> PostgresConnection::Query(const std::string& prepared,
                                                                   const std::vector<absl::string_view>& values) {
  RLHF_RETURN_IF_ERROR(broken_);
  RLHF_RETURN_IF_ERROR(Prepared(prepared, values));
  Rows rows;
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const Result result, Next());
    if (result == nullptr) return rows;
    if (!SucceededInPostgres(result.get())) return Failed(prepared);
    rows = RowsOfResult(result.get());
  }
}

absl::Status PostgresConnection::Commit(const std::vector<Statement>& statements) {
  RLHF_RETURN_IF_ERROR(broken_);
  if (PQenterPipelineMode(connection_) != 1) return Failed("pipeline");
  for (const Statement& statement : statements) RLHF_RETURN_IF_ERROR(Prepared(statement.prepared, statement.values));
  // The server skips it, with everything else, after a statement that failed.
  if (PQsendQueryParams(connection_, "COMMIT", 0, nullptr, nullptr, nullptr, nullptr, 0) != 1) return Failed("COMMIT");
  if (PQpipelineSync(connection_) != 1) return Failed("pipeline");
  bool committed = false;
  int ends = 0;  // a null result ends a statement's; two in a row never come while the session is whole
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const Result result, Next());
    ends = result == nullptr ? ends + 1 : 0;
    if (ends > 1) return Failed("the session broke");
    if (result == nullptr) continue;
    if (PQresultStatus(result.get()) == PGRES_PIPELINE_SYNC) break;
    if (!SucceededInPostgres(result.get())) return Failed("write");
    // A transaction that had failed is answered "ROLLBACK".
    committed = absl::string_view(PQcmdStatus(result.get())) == "COMMIT";
  }
  if (!committed) return Failed("the transaction was rolled back");
  if (PQexitPipelineMode(connection_) != 1) return Failed("pipeline");
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
