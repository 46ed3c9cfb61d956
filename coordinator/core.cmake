# Logic without gRPC: the loop, stores, events, fleet, ledger and sampling.
# PostgreSQL is optional: without libpq the store is left out, and --store says so.
if(TARGET PkgConfig::libpq)
  set(_postgres store/postgres_connection.cc store/postgres_lead.cc store/postgres_store.cc)
  set(_libpq PkgConfig::libpq)
else()
  set(_postgres store/postgres_missing.cc)
  set(_libpq)
endif()
rlhf_cc_library(NAME coordinator_core GRPC
  HDRS event_log.h event_loop.h fleet.h lease_table.h ledger.h loop_clock.h page_limit.h payload_retention.h quotas.h sample_cache.h scheduling/fair_share.h scheduling/gang.h scheduling/prompt_room.h scheduling/weight_fan_out.h sampling.h sampling_impl.h store/keys.h store/payload_store.h store/postgres_connection.h store/postgres_store.h store/state_store.h store/store_decorator.h
  SRCS event_log.cc event_loop.cc fleet.cc ledger.cc loop_clock.cc payload_retention.cc quotas.cc scheduling/fair_share.cc scheduling/gang.cc scheduling/prompt_room.cc scheduling/weight_fan_out.cc sampling.cc sampling_check.cc sampling_leases.cc sampling_replacements.cc sampling_results.cc sampling_rows.cc sampling_scores.cc
       store/payload_store.cc store/sqlite_store.cc store/state_store.cc ${_postgres}
  DEPS rlhf::common rlhf::artifact_digest rlhf::artifact_sample_digest rlhf::proto absl::any_invocable absl::function_ref absl::status absl::statusor
       absl::strings absl::str_format absl::synchronization absl::time absl::random_random PkgConfig::xxhash SQLite::SQLite3 ${_libpq})
