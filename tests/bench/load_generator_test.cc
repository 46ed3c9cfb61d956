// A short load run against a real coordinator: not how fast, but that nothing is lost, refused or miscounted.
#include "bench/load_generator/load_run.h"
#include "bench/load_generator/recovery_run.h"

#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "common/process.h"
#include "coordinator/ledger.h"
#include "tests/testing/run_command.h"

namespace rlhf::bench {
namespace {

LoadOptions Short() {
  LoadOptions options;
  options.coordinator = BinDir() + "/rlhf-coordinator";
  options.workers = 30;
  options.samples_per_second = 150;
  options.response_tokens = 50;
  options.samples_per_step = 100;
  options.checkpoint_every = 2;
  options.warmup_seconds = 1;
  options.seconds = 3;
  return options;
}

void ExpectSound(const absl::StatusOr<LoadResult>& result) {
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->violations.empty()) << absl::StrJoin(result->violations, "\n");
  EXPECT_GE(result->steps, 2);
  EXPECT_GT(result->trained, 0);
  EXPECT_GT(result->calls.at("LeasePrompts").items, 0);
  EXPECT_GT(result->calls.at("SubmitSamples").items, 0);
  for (const char* call : {"LeasePrompts", "SubmitSamples"}) {
    const Recorder::Summary& took = result->calls.at(call);
    EXPECT_GT(took.p50_ms, 0) << call;
    EXPECT_LE(took.p50_ms, took.p90_ms) << call;
    EXPECT_LE(took.p90_ms, took.p99_ms) << call;
    EXPECT_LE(took.p99_ms, took.p999_ms) << call;
    EXPECT_LE(took.p999_ms, took.max_ms) << call;
  }
  // Memory is seen through the whole window, and the peak is no less than what was seen.
  EXPECT_GE(result->resident_mb.size(), 10u);
  for (const double megabytes : result->resident_mb) {
    EXPECT_GT(megabytes, 0);
    EXPECT_LE(megabytes, result->peak_mb + 4);  // the kernel counts in batches of pages
  }
  for (const auto& [why, count] : result->failures) {
    // On a slow machine a lease may be hedged: the loser of the two is told so.
    if (why != "verdict: STALE_ATTEMPT") ADD_FAILURE() << count << " times: " << why;
  }
}

TEST(LoadGeneratorTest, AShortRunTrainsStepsAndItsLedgerHolds) {
  ExpectSound(RunLoad(Short()));
}

TEST(LoadGeneratorTest, WorkersOfTheProtocolBeforeThisOneServeAWholeJob) {
  LoadOptions options = Short();
  options.protocol_version = kProtocolVersion - 1;
  options.samples_per_lease = 4;
  ExpectSound(RunLoad(options));
}

TEST(LoadGeneratorTest, AKilledCoordinatorComesBackWithTheSameLedger) {
  LoadOptions options = Short();
  options.samples_per_lease = 10;
  options.samples_per_second = 1000;
  const auto result = RunRecovery(options, 1500);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->violations.empty()) << absl::StrJoin(result->violations, "\n");
  EXPECT_TRUE(coordinator::Balanced(result->after)) << result->after.ShortDebugString();
  EXPECT_GE(result->after.issued(), result->before.issued());
  EXPECT_GE(result->after.trained(), result->before.trained());
}

}  // namespace
}  // namespace rlhf::bench
