// Kills in a random order, at every named stage and at any moment, and processes that stop for a while, while jobs at
// lag 0 and 1 run; then the checker and an exact replay of every job.
//
// RLHF_FAULTS_SEED repeats an order, RLHF_FAULTS_KILLS changes how many kills (32); for each eight of them a process
// stops.
#include <algorithm>
#include <random>

#include <gtest/gtest.h>

#include "tests/faults/stages.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

// What else a plan may name, beside the stages.
constexpr char kAnyMoment[] = "a kill at any moment", kStop[] = "a stop";

uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

class RandomKills : public testing::Test {
 protected:
  RandomKills() : seed_(Setting("RLHF_FAULTS_SEED", std::random_device{}())), random_(seed_) {
    std::printf("RLHF_FAULTS_SEED=%llu\n", static_cast<unsigned long long>(seed_));
    std::fflush(stdout);
  }
  static LocalServiceOptions Options() {
    LocalServiceOptions options;
    options.faults = true;
    return options;
  }
  int Random(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }

  // Sees to it that a job runs: the next one when the last has ended.
  void KeepAJobRunning() {
    if (!jobs_.empty()) {
      const std::string state = service_.StateOf(jobs_.back().name);
      if (state != "SUCCEEDED" && state != "FAILED") return;
    }
    SmallJob job;
    job.name = absl::StrCat("job-", jobs_.size());
    job.steps = 12;
    job.lag = static_cast<int>(jobs_.size() % 2);
    job.checkpoint_every = 3;
    const std::string file = WriteSmallJob(service_.scratch().path(), job);
    // The coordinator may be away: a request id makes the second try the same submission.
    CommandResult submitted;
    LocalService::Until(
        absl::Seconds(30),
        [&] {
          submitted = service_.Ctl(absl::StrCat("submit ", file, " --request-id ", job.name));
          return submitted.code == 0;
        },
        absl::StrCat("the job is submitted: ", submitted.output));
    jobs_.push_back(job);
  }

  void KillAt(const std::string& stage) {
    service_.Arm("any", stage, absl::StrCat("kill@", 1 + Random(3)));
    LocalService::Until(
        absl::Seconds(60),
        [&] {
          KeepAJobRunning();
          return service_.Fired("any", stage);
        },
        absl::StrCat("a process dies at ", stage));
  }
  // A process of any role; -1 after a failure.
  pid_t AnyProcess() {
    const std::vector<std::string> instances = {"coordinator", "learner-0", "learner-1",
                                                "rollout-0",   "rollout-1", "reward-0"};
    const std::string& instance = instances[static_cast<size_t>(Random(static_cast<int>(instances.size())))];
    pid_t pid = -1;
    LocalService::Until(
        absl::Seconds(30), [&] { return (pid = service_.Pid(instance)) > 0; }, instance + " is there");
    return pid;
  }
  void KillNow() {
    const pid_t pid = AnyProcess();
    ASSERT_GT(pid, 0);  // kill(-1) would end everything
    ASSERT_EQ(kill(pid, SIGKILL), 0);
  }
  // For less or more than a lease of three seconds. Every other time something is killed meanwhile, which may be the
  // stopped process itself.
  void StopNow() {
    const pid_t pid = AnyProcess();
    ASSERT_GT(pid, 0);  // kill(-1) would stop everything
    ASSERT_EQ(kill(pid, SIGSTOP), 0);
    const absl::Time until = absl::Now() + absl::Milliseconds(200 + Random(4000));
    if (Random(2) == 0) KillNow();
    absl::SleepFor(until - absl::Now());
    kill(pid, SIGCONT);  // fails when it was the one that was killed
  }

  const uint64_t seed_;
  std::mt19937_64 random_;
  LocalService service_{Options()};
  std::vector<SmallJob> jobs_;
};

TEST_F(RandomKills, NothingIsLostAndEveryReplayIsExact) {
  MakeSmallModel(service_.scratch().path());
  std::vector<std::string> plan(kStages.begin(), kStages.end());
  const size_t kills = Setting("RLHF_FAULTS_KILLS", 32);
  for (size_t more = 0; plan.size() < kills; ++more)
    plan.push_back(more < 7 || more % 2 == 0 ? kAnyMoment : kStages[static_cast<size_t>(Random(kStages.size()))]);
  plan.insert(plan.end(), kills / 8, kStop);
  std::shuffle(plan.begin(), plan.end(), random_);
  for (size_t i = 0; i < plan.size() && !HasFatalFailure(); ++i) {
    KeepAJobRunning();
    const absl::Time began = absl::Now();
    if (plan[i] == kAnyMoment) {
      KillNow();
    } else if (plan[i] == kStop) {
      StopNow();
    } else {
      KillAt(plan[i]);
    }
    std::printf("fault %zu of %zu: %s after %.1f s, %s at step %lld\n", i + 1, plan.size(), plan[i].c_str(),
                absl::ToDoubleSeconds(absl::Now() - began), jobs_.back().name.c_str(),
                static_cast<long long>(service_.StepOf(jobs_.back().name)));
    std::fflush(stdout);
    absl::SleepFor(absl::Milliseconds(Random(800)));  // faults come at no particular moment
  }
  for (const SmallJob& job : jobs_) {
    LocalService::Until(
        absl::Seconds(90), [&] { return service_.StateOf(job.name) == "SUCCEEDED"; }, job.name + " succeeds");
    ExpectWhole(service_, job);
    ExpectExactReplay(service_, job);
  }
}

}  // namespace
}  // namespace rlhf
