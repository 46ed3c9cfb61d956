// Several jobs on one fleet, against a real coordinator: a higher priority takes the learner at the end of a step, the
// other goes on from where it was; a quota makes a job wait for its turn; `why` says so.
#include <functional>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/load_generator/load_cluster.h"
#include "bench/load_generator/simulated_job.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::bench {
namespace {

class ManyJobsTest : public testing::Test {
 protected:
  void SetUp() override {
    options_.coordinator = BinDir() + "/rlhf-coordinator";
    options_.workers = 20;
    options_.samples_per_second = 400;
    options_.samples_per_lease = 4;
    options_.response_tokens = 20;
    options_.samples_per_step = 80;
    options_.checkpoint_every = 1000;  // only when it is asked for
    options_.evidence_dir = dir_.File("evidence");
    Configure();
    auto cluster = LoadCluster::Start(options_);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
    ASSERT_TRUE(cluster_->WriteContext(dir_.File("context.json")).ok());
  }
  virtual void Configure() {}
  CommandResult Ctl(const std::string& arguments) {
    return RunCommand(absl::StrCat(BinDir(), "/rlhfctl --context ", dir_.File("context.json"), " ", arguments));
  }
  std::string Submit(const std::string& name, int64_t steps, int priority) {
    const auto id = SubmitSimulatedJob(cluster_->api(), options_, dir_.path(), name, steps, priority);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or("");
  }
  v1::Job Job(const std::string& id) {
    const auto job = GetJob(cluster_->api(), id);
    EXPECT_TRUE(job.ok()) << job.status();
    return job.value_or(v1::Job());
  }
  std::string Why(const std::string& id) {
    const auto response = Explain(cluster_->api(), id);
    EXPECT_TRUE(response.ok()) << response.status();
    std::string reasons;
    if (response.ok()) {
      for (const v1::Wait& wait : response->waits()) absl::StrAppend(&reasons, v1::WaitReason_Name(wait.reason()), " ");
    }
    return reasons;
  }
  void Until(const std::string& what, const std::function<bool()>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(40);
    while (!condition()) {
      ASSERT_LT(absl::Now(), deadline) << "waited in vain until " << what;
      absl::SleepFor(absl::Milliseconds(10));  // another process: there is nothing to wait on but its answers
    }
  }
  void ExpectSound(const std::string& id) {
    const CommandResult checked = Ctl(absl::StrCat("ledger ", id, " --check --evidence ", dir_.File("evidence")));
    EXPECT_EQ(checked.code, 0) << checked.output;
  }

  ScratchDir dir_;
  LoadOptions options_;
  std::unique_ptr<LoadCluster> cluster_;
};

TEST_F(ManyJobsTest, AHigherPriorityPreemptsAtAStepsEndAndTheOtherGoesOnFromThere) {
  const std::string low = cluster_->job_id();
  Until("the first job trains", [&] { return Job(low).step() >= 2; });
  const std::string high = Submit("urgent", 6, 5);
  Until("it makes room", [&] { return Job(low).preempted_by() == high; });
  const v1::Job preempted = Job(low);
  EXPECT_EQ(preempted.state(), v1::PENDING);
  EXPECT_EQ(preempted.reason_code(), "PREEMPTED");
  EXPECT_EQ(preempted.checkpoint_step(), preempted.step()) << "it left without a checkpoint of its last step";
  if (Job(low).state() == v1::PENDING) {
    EXPECT_NE(Why(low).find("PREEMPTED"), std::string::npos) << Why(low);
  }
  Until("the urgent one has ended", [&] { return Job(high).state() == v1::SUCCEEDED; });
  Until("the first goes on", [&] { return Job(low).step() >= preempted.step() + 2; });
  const v1::Job resumed = Job(low);
  EXPECT_EQ(resumed.state(), v1::RUNNING);
  EXPECT_TRUE(resumed.preempted_by().empty());
  EXPECT_EQ(resumed.version().lineage(), preempted.version().lineage());
  ExpectSound(low);
  ExpectSound(high);
}

// A fleet of the protocol before checkpoints on request: it is preempted all the same.
class OlderFleetTest : public ManyJobsTest {
 protected:
  void Configure() override {
    options_.protocol_version = 1;
    options_.checkpoint_every = 3;
  }
};

TEST_F(OlderFleetTest, ALearnerThatKnowsNoCheckpointOnRequestMakesRoomAndGoesOnFromItsLastOne) {
  const std::string low = cluster_->job_id();
  Until("the first job has a checkpoint", [&] { return Job(low).checkpoint_step() >= 3; });
  const std::string high = Submit("urgent", 4, 5);
  Until("it makes room", [&] { return Job(low).preempted_by() == high; });
  const v1::Job preempted = Job(low);
  EXPECT_EQ(preempted.checkpoint_step() % 3, 0) << "only its own checkpoints";
  Until("the urgent one has ended", [&] { return Job(high).state() == v1::SUCCEEDED; });
  Until("the first goes on beyond where it was", [&] { return Job(low).step() >= preempted.step() + 2; });
  EXPECT_TRUE(Job(low).preempted_by().empty());
  ExpectSound(low);
  ExpectSound(high);
}

TEST_F(ManyJobsTest, AnEqualPriorityWaitsAndAQuotaOfJobsHoldsOneBack) {
  const std::string second = Submit("second", 2, 0);
  Until("it waits for the learner", [&] { return Why(second).find("LEARNERS_BUSY") != std::string::npos; });
  const CommandResult set = Ctl("quota set --max-jobs 2");
  ASSERT_EQ(set.code, 0) << set.output;
  const std::string third = Submit("third", 2, 9);
  Until("the third waits for its turn", [&] { return Why(third).find("QUOTA") != std::string::npos; });
  EXPECT_EQ(Job(third).state(), v1::PENDING);
  ASSERT_TRUE(CancelJob(cluster_->api(), second).ok());
  Until("the third has ended", [&] { return Job(third).state() == v1::SUCCEEDED; });
  const CommandResult list = Ctl("quota list");
  EXPECT_NE(list.output.find("default"), std::string::npos) << list.output;
}

}  // namespace
}  // namespace rlhf::bench
