// Tests of a real coordinator with a PPO job and a simulated fleet around it.
#pragma once

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::bench {

class LoadClusterTest : public testing::Test {
 protected:
  static constexpr int kSamplesPerStep = 80;

  // A few steps a second, and a checkpoint every third.
  static LoadOptions SmallLoad() {
    LoadOptions options;
    options.coordinator = BinDir() + "/rlhf-coordinator";
    options.workers = 20;
    options.samples_per_second = 400;
    options.samples_per_lease = 4;
    options.response_tokens = 50;
    options.samples_per_step = kSamplesPerStep;
    options.checkpoint_every = 3;
    return options;
  }
  void Start(const LoadOptions& options) {
    auto cluster = LoadCluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
    ASSERT_TRUE(cluster_->WriteContext(dir_.File("context.json")).ok());
  }
  // Of the job, which must hold. A channel may still wait before it tries the one that answers now.
  v1::LedgerCounts Ledger(bool check) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    auto ledger = CheckLedger(cluster_->api(), cluster_->job_id(), check);
    while (absl::IsUnavailable(ledger.status()) && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(20));  // as below
      ledger = CheckLedger(cluster_->api(), cluster_->job_id(), check);
    }
    EXPECT_TRUE(ledger.ok()) << ledger.status();
    if (!ledger.ok()) return {};
    EXPECT_TRUE(ledger->violations().empty()) << absl::StrJoin(ledger->violations(), "\n");
    return ledger->counts();
  }
  // Also while nobody answers for a moment.
  void WaitTrained(int64_t samples) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (true) {
      const auto ledger = CheckLedger(cluster_->api(), cluster_->job_id(), false);
      if (ledger.ok() && ledger->counts().trained() >= samples) return;
      ASSERT_LT(absl::Now(), deadline) << "the job does not go on: "
                                       << (ledger.ok() ? ledger->counts().ShortDebugString()
                                                       : ledger.status().ToString());
      absl::SleepFor(absl::Milliseconds(20));  // another process: there is nothing to wait on but its answers
    }
  }
  CommandResult Ctl(const std::string& arguments) {
    return RunCommand(absl::StrCat(BinDir(), "/rlhfctl --context ", dir_.File("context.json"), " ", arguments));
  }

  ScratchDir dir_;
  std::unique_ptr<LoadCluster> cluster_;
};

}  // namespace rlhf::bench
