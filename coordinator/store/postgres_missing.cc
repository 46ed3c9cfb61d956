// In place of the PostgreSQL store in a build without libpq.
#include "coordinator/store/postgres_store.h"

namespace rlhf::coordinator {

absl::Status CheckPostgresUri(const std::string& uri) {
  return absl::UnimplementedError(
      "store: this build has SQLite only, since libpq was not there when it was made; install libpq-dev, run CMake "
      "again and build, or leave --store out");
}

absl::StatusOr<std::unique_ptr<PostgresLead>> ConnectPostgres(const PostgresOptions& options) {
  return CheckPostgresUri(options.uri);
}

absl::StatusOr<std::unique_ptr<StateStore>> OpenPostgresStore(const PostgresOptions& options, int64_t epoch) {
  return CheckPostgresUri(options.uri);
}

}  // namespace rlhf::coordinator
