// Who gets what of the fleet: fair shares, gangs, preemption; and long simulations with random events and a clock that
// only the simulation moves, in which nobody starves and nothing locks up.
#include <algorithm>
#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/scheduling/fair_share.h"
#include "coordinator/scheduling/gang.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

ShareRule NoRule(const std::string&, const std::string&) {
  return {};
}

TEST(FairShareTest, PriorityThenProjectsByWeightThenSubmittersThenJobs) {
  const auto weights = [](const std::string& project, const std::string&) {
    return ShareRule{0, project == "big" ? 3.0 : 1.0};
  };
  // 3 units of a project of weight 3 are as much as 1 of a project of weight 1.
  EXPECT_EQ(PickClaim({{0, "big", "a", 3}, {0, "small", "b", 2}}, weights, -1), 0);
  EXPECT_EQ(PickClaim({{0, "big", "a", 4}, {0, "small", "b", 1}}, weights, -1), 1);
  EXPECT_EQ(PickClaim({{0, "big", "a", 0}, {1, "small", "b", 9}}, weights, -1), 1);
  // Within a project, the submitter with less goes first, whatever their number of jobs.
  EXPECT_EQ(PickClaim({{0, "p", "a", 1}, {0, "p", "a", 1}, {0, "p", "b", 1}}, NoRule, -1), 2);
  EXPECT_EQ(PickClaim({{0, "p", "a", 2}, {0, "p", "a", 1}}, NoRule, -1), 1);
  // Ties stay where they are.
  EXPECT_EQ(PickClaim({{0, "p", "a", 1}, {0, "p", "a", 1}}, NoRule, 1), 1);
}

TEST(FairShareTest, AQuotaCountsJobsThatWantNothingMore) {
  const auto two = [](const std::string&, const std::string& submitter) {
    return ShareRule{submitter.empty() ? 2 : 0, 1.0};
  };
  EXPECT_EQ(PickClaim({{5, "p", "a", 2, false}, {5, "p", "b", 0}, {0, "q", "c", 1}}, two, -1), 2);
  EXPECT_EQ(PickClaim({{5, "p", "a", 2, false}, {5, "p", "b", 0}}, two, -1), -1);
  EXPECT_EQ(PickClaim({}, two, -1), -1);
}

TEST(FairShareTest, WorkersThatAskOneByOneEndInProportionToTheWeights) {
  const auto weights = [](const std::string& project, const std::string&) {
    return ShareRule{0, project == "a" ? 1.0 : project == "b" ? 2.0 : 5.0};
  };
  std::vector<Claim> claims = {{0, "a", "x", 0}, {0, "b", "y", 0}, {0, "c", "z", 0}};
  for (int i = 0; i < 80; ++i) ++claims[static_cast<size_t>(PickClaim(claims, weights, -1))].held;
  EXPECT_EQ(claims[0].held, 10);
  EXPECT_EQ(claims[1].held, 20);
  EXPECT_EQ(claims[2].held, 50);
}

TEST(FairShareTest, ASubmittersQuotaHoldsBesideItsProjects) {
  const auto one_of_a = [](const std::string&, const std::string& submitter) {
    return ShareRule{submitter == "a" ? 1 : 0, 1.0};
  };
  EXPECT_EQ(PickClaim({{9, "p", "a", 1}, {0, "p", "b", 5}}, one_of_a, -1), 1);
  EXPECT_EQ(PickClaim({{9, "p", "a", 0}, {0, "p", "b", 5}}, one_of_a, -1), 0);
  EXPECT_EQ(PickClaim({{9, "p", "a", 1}}, one_of_a, 0), -1);
}

TEST(PatienceTest, APointForEachTenMinutesInVainKeptForTenMore) {
  Patience patience;
  EXPECT_EQ(patience.Points(absl::Minutes(0), true), 0);
  EXPECT_EQ(patience.Points(absl::Minutes(9), true), 0);
  EXPECT_EQ(patience.Points(absl::Minutes(25), true), 2);
  patience.Granted(absl::Minutes(25));
  EXPECT_EQ(patience.Points(absl::Minutes(26), false), 2) << "also between two units";
  EXPECT_EQ(patience.Points(absl::Minutes(34), true), 2);
  EXPECT_EQ(patience.Points(absl::Minutes(35), true), 0);
  EXPECT_EQ(patience.Points(absl::Minutes(44), true), 0);
  EXPECT_EQ(patience.Points(absl::Minutes(45), true), 1);
  EXPECT_EQ(patience.Points(absl::Minutes(46), false), 0) << "who wants nothing does not wait";
  // Who is served all the time gains nothing.
  for (int minute = 50; minute < 200; minute += 5) {
    EXPECT_EQ(patience.Points(absl::Minutes(minute), true), 0);
    patience.Granted(absl::Minutes(minute));
  }
}

// Workers that each ask for a unit when theirs has ended, as SamplingImpl::PickJob and Dispatch do.
struct ClaimSimulation {
  struct Job {
    int priority;
    std::string project, submitter;
    Patience patience = Patience();
    absl::Duration used = absl::ZeroDuration();
    absl::Duration first = absl::InfiniteDuration();
  };
  struct Worker {
    int job = -1;
    absl::Duration until = absl::ZeroDuration();
  };
  std::vector<Job> jobs;
  std::vector<Worker> workers;
  std::mt19937_64 random{7};

  void Run(absl::Duration time, ShareRuleOf rule) {
    for (absl::Duration now; now < time; now += absl::Seconds(1)) {
      for (Worker& worker : workers) {
        if (worker.until > now) continue;
        std::vector<Claim> claims;
        for (size_t i = 0; i < jobs.size(); ++i) {
          const auto held = std::count_if(workers.begin(), workers.end(), [&](const Worker& other) {
            return &other != &worker && other.until > now && other.job == static_cast<int>(i);
          });
          claims.push_back({jobs[i].priority + jobs[i].patience.Points(now, true), jobs[i].project, jobs[i].submitter,
                            static_cast<int>(held)});
        }
        worker.job = PickClaim(claims, rule, worker.job);
        if (worker.job < 0) continue;
        Job& job = jobs[static_cast<size_t>(worker.job)];
        job.patience.Granted(now);
        job.first = std::min(job.first, now);
        worker.until = now + absl::Seconds(5 + static_cast<int>(random() % 30));
        job.used += worker.until - now;
      }
    }
  }
};

TEST(ClaimSimulationTest, NobodyStarvesBesideAJobThatAlwaysWantsMore) {
  ClaimSimulation fleet;
  fleet.workers.resize(4);
  fleet.jobs = {{5, "p", "high"}, {2, "p", "low"}, {2, "q", "low too"}};
  fleet.Run(absl::Hours(20), NoRule);
  for (const auto& job : fleet.jobs) {
    EXPECT_LE(job.first, absl::Minutes(31)) << job.submitter;
    EXPECT_GT(job.used, absl::Hours(4)) << job.submitter << ", of 80 hours of workers";
  }
  EXPECT_GT(fleet.jobs[0].used, 2 * (fleet.jobs[1].used + fleet.jobs[2].used)) << "priority still counts";
}

TEST(ClaimSimulationTest, QuotasHoldWhatEverWaits) {
  ClaimSimulation fleet;
  fleet.workers.resize(4);
  fleet.jobs = {{0, "p", "a"}, {9, "p", "b"}};
  const auto one_of_b = [](const std::string&, const std::string& submitter) {
    return ShareRule{submitter == "b" ? 1 : 0, 1.0};
  };
  fleet.Run(absl::Hours(5), one_of_b);
  EXPECT_LE(fleet.jobs[1].used, absl::Hours(5) + absl::Minutes(1)) << "one worker's time";
  EXPECT_GT(fleet.jobs[1].used, absl::Hours(4));
  EXPECT_GT(fleet.jobs[0].used, absl::Hours(14));
}

std::vector<std::string> Started(const GangPlan& plan) {
  std::vector<std::string> ids;
  for (const GangPlan::Start& start : plan.start) ids.push_back(start.id);
  return ids;
}
GangJob Waiting(const std::string& id, int priority, int ranks, absl::Duration waited = absl::ZeroDuration()) {
  GangJob job;
  job.id = id;
  job.priority = priority;
  job.project = "p";
  job.submitter = "s";
  job.ranks = ranks;
  job.waited = waited;
  return job;
}
GangJob Running(const std::string& id, int priority, int ranks) {
  GangJob job = Waiting(id, priority, ranks);
  job.running = true;
  job.held = ranks;
  job.started_with = priority;
  return job;
}

TEST(GangTest, AllRanksOrNone) {
  const GangPlan plan = PlanGangs({Waiting("a", 0, 3), Waiting("b", 0, 3)}, 4, 4, NoRule);
  EXPECT_THAT(Started(plan), ElementsAre("a"));
  EXPECT_THAT(plan.waits, ElementsAre(Pair("b", GangWait::kLearnersBusy)));
}

TEST(GangTest, WhatCanNeverRunHoldsUpNobody) {
  const GangPlan plan = PlanGangs({Waiting("huge", 9, 8), Waiting("small", 0, 1)}, 4, 4, NoRule);
  EXPECT_THAT(Started(plan), ElementsAre("small"));
  EXPECT_THAT(plan.waits, ElementsAre(Pair("huge", GangWait::kTooFewLearners)));
}

TEST(GangTest, AHigherPriorityTakesTheLeastAndTheNewest) {
  const GangPlan plan = PlanGangs({Running("low", 0, 2), Running("mid", 1, 2), Waiting("high", 5, 2)}, 0, 4, NoRule);
  EXPECT_THAT(Started(plan), IsEmpty());
  EXPECT_THAT(plan.yield, ElementsAre(Pair("low", "high")));
  // Nobody is sent away in vain.
  EXPECT_THAT(PlanGangs({Running("low", 0, 1), Running("same", 5, 3), Waiting("high", 5, 2)}, 0, 4, NoRule).yield,
              IsEmpty());
  // One that has been told is not told again, and what it frees is waited for.
  GangJob going = Running("low", 0, 2);
  going.yielding = true;
  const GangPlan waits =
      PlanGangs({going, Running("mid", 1, 2), Waiting("high", 5, 2), Waiting("x", 0, 1)}, 1, 5, NoRule);
  EXPECT_THAT(waits.yield, IsEmpty());
  EXPECT_THAT(Started(waits), IsEmpty()) << "the free learner is kept for the one that makes room";
}

TEST(GangTest, OnlyWhatCouldBeTakenBackMayPassTheFirstInLine) {
  // "big" cannot run while "other" (same priority) does: a lower one may use the rest meanwhile, an equal one may not.
  const std::vector<GangJob> jobs = {Running("other", 5, 3), Waiting("big", 5, 4, absl::Minutes(1)),
                                     Waiting("low", 1, 1)};
  EXPECT_THAT(Started(PlanGangs(jobs, 1, 4, NoRule)), ElementsAre("low"));
  EXPECT_THAT(Started(PlanGangs({jobs[0], jobs[1], Waiting("equal", 5, 1)}, 1, 4, NoRule)), IsEmpty());
}

TEST(GangTest, LearnersThatCannotTrainTheFirstInLineAreForOthers) {
  GangJob first = Waiting("first", 5, 2, absl::Minutes(1));
  first.unfit = first.unfit_registered = 1;
  const GangJob other = Waiting("other", 5, 1), large = Waiting("large", 5, 2);
  // With the one that it cannot use there are too few for it at all: it keeps nothing.
  GangPlan plan = PlanGangs({first, large}, 2, 2, NoRule);
  EXPECT_THAT(Started(plan), ElementsAre("large"));
  EXPECT_THAT(plan.waits, ElementsAre(Pair("first", GangWait::kTooFewLearners)));
  // There are enough, one of which makes room: it keeps what it can use.
  GangJob leaves = Running("leaves", 0, 1);
  leaves.yielding = true;
  plan = PlanGangs({leaves, first, other, large}, 2, 3, NoRule);
  EXPECT_THAT(Started(plan), ElementsAre("other"));
  EXPECT_EQ(plan.waits["first"], GangWait::kLearnersBusy);
  EXPECT_THAT(Started(PlanGangs({leaves, first, large}, 2, 3, NoRule)), IsEmpty());
  // Who cannot use it either gets nothing.
  GangJob unfit = other;
  unfit.unfit = 1;
  EXPECT_THAT(Started(PlanGangs({leaves, first, unfit}, 2, 3, NoRule)), IsEmpty());
}

TEST(GangTest, AQuotaOfLearnersHoldsAndHoldsUpNobodyElse) {
  const auto two = [](const std::string& project, const std::string& submitter) {
    return ShareRule{project == "p" && submitter.empty() ? 2 : 0, 1.0};
  };
  GangJob other = Waiting("other", 0, 1);
  other.project = "q";
  const GangPlan plan = PlanGangs({Running("a", 0, 2), Waiting("b", 9, 1), other}, 2, 4, two);
  EXPECT_THAT(Started(plan), ElementsAre("other"));
  EXPECT_THAT(plan.waits, ElementsAre(Pair("b", GangWait::kQuota)));
}

TEST(GangTest, AQuotaOfASubmittersLearnersHolds) {
  const auto two_of_s = [](const std::string&, const std::string& submitter) {
    return ShareRule{submitter == "s" ? 2 : 0, 1.0};
  };
  GangJob other = Waiting("other", 0, 1);
  other.submitter = "t";
  const GangPlan plan = PlanGangs({Running("a", 0, 2), Waiting("b", 9, 1), other}, 2, 4, two_of_s);
  EXPECT_THAT(Started(plan), ElementsAre("other"));
  EXPECT_THAT(plan.waits, ElementsAre(Pair("b", GangWait::kQuota)));
}

// A fleet in which learners come and go, jobs arrive and end, and groups leave only at the end of a step.
class FleetSimulation {
 public:
  FleetSimulation(uint64_t seed, int learners) : random_(seed), registered_(learners) {}

  struct Job {
    GangJob gang;
    absl::Duration work, arrived, since, started = absl::InfiniteDuration(), step_left;
    bool done = false;
  };

  void Arrive(int priority, int ranks, absl::Duration work, const std::string& project) {
    Job job;
    job.gang = Waiting(absl::StrCat("job-", jobs_.size()), priority, ranks);
    job.gang.project = project;
    job.work = work;
    job.arrived = job.since = now_;
    jobs_.push_back(job);
  }
  void Tick(absl::Duration by) {
    now_ += by;
    for (Job& job : jobs_) {
      if (job.done) continue;
      if (!job.gang.running) {
        job.gang.waited = now_ - job.since;
        continue;
      }
      job.work -= by;
      job.step_left -= by;
      used_[job.gang.project] += absl::ToDoubleSeconds(by) * job.gang.held;
      if (job.work <= absl::ZeroDuration()) {
        job.done = true;
        job.gang.running = false;
      } else if (job.step_left <= absl::ZeroDuration()) {
        if (job.gang.yielding) Leave(job);
        job.step_left = absl::Seconds(10 + static_cast<int>(random_() % 50));
      }
    }
    Plan();
  }
  void Lose() {
    if (registered_ == 0) return;
    --registered_;
    if (Held() <= registered_) return;
    for (Job& job : jobs_) {
      if (!job.gang.running || random_() % 2 == 0) continue;
      Leave(job);
      if (Held() <= registered_) return;
    }
    for (Job& job : jobs_) {
      if (job.gang.running && Held() > registered_) Leave(job);
    }
  }
  void Join() { ++registered_; }
  int Held() const {
    int held = 0;
    for (const Job& job : jobs_) held += job.gang.running ? job.gang.held : 0;
    return held;
  }
  int Unfinished() const {
    return static_cast<int>(std::count_if(jobs_.begin(), jobs_.end(), [](const Job& job) { return !job.done; }));
  }
  int registered() const { return registered_; }
  absl::Duration now() const { return now_; }
  const std::vector<Job>& jobs() const { return jobs_; }
  std::map<std::string, double> used() const { return used_; }
  std::map<std::string, double> weights;

 private:
  void Leave(Job& job) {
    job.gang.running = job.gang.yielding = false;
    job.gang.held = 0;
    job.since = now_;
    job.gang.waited = absl::ZeroDuration();
  }
  void Plan() {
    std::vector<GangJob> active;
    for (const Job& job : jobs_) {
      if (!job.done) active.push_back(job.gang);
    }
    const GangPlan plan =
        PlanGangs(active, registered_ - Held(), registered_, [this](const std::string& project, const std::string&) {
          const auto it = weights.find(project);
          return ShareRule{0, it == weights.end() ? 1.0 : it->second};
        });
    for (Job& job : jobs_) {
      if (const auto victim = plan.yield.find(job.gang.id); victim != plan.yield.end()) {
        ASSERT_TRUE(job.gang.running);
        job.gang.yielding = true;
      }
      const auto start = std::find_if(plan.start.begin(), plan.start.end(),
                                      [&](const GangPlan::Start& one) { return one.id == job.gang.id; });
      if (start == plan.start.end()) continue;
      ASSERT_FALSE(job.gang.running);
      job.gang.started_with = start->effective_priority;
      job.gang.running = true;
      job.gang.held = job.gang.ranks;
      job.started = std::min(job.started, now_);
      job.step_left = absl::Seconds(30);
    }
    ASSERT_LE(Held(), registered_) << "more was given than there is";
  }

  std::mt19937_64 random_;
  int registered_;
  absl::Duration now_;
  std::vector<Job> jobs_;
  std::map<std::string, double> used_;
};

TEST(GangSimulationTest, WithRandomEventsEveryJobEndsAndNothingLocksUp) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    std::mt19937_64 random(seed);
    FleetSimulation fleet(seed, 6);
    for (int i = 0; i < 1000; ++i) {
      if (random() % 20 == 0) {
        fleet.Arrive(static_cast<int>(random() % 4), 1 + static_cast<int>(random() % 6),
                     absl::Seconds(30 + static_cast<int>(random() % 300)), random() % 2 == 0 ? "p" : "q");
      }
      if (random() % 40 == 0) fleet.Lose();
      if (random() % 40 == 0 && fleet.registered() < 8) fleet.Join();
      fleet.Tick(absl::Seconds(10));
      if (testing::Test::HasFatalFailure()) FAIL() << "seed " << seed;
    }
    while (fleet.registered() < 6) fleet.Join();
    for (int i = 0; i < 20'000 && fleet.Unfinished() > 0; ++i) fleet.Tick(absl::Seconds(10));
    EXPECT_EQ(fleet.Unfinished(), 0) << "seed " << seed << ": jobs wait for ever";
  }
}

TEST(GangSimulationTest, AStreamOfHigherPriorityDoesNotStarveALowOne) {
  FleetSimulation fleet(1, 4);
  fleet.Arrive(0, 4, absl::Minutes(5), "low");
  for (int i = 0; i < 3000 && fleet.jobs()[0].started == absl::InfiniteDuration(); ++i) {
    if (i % 6 == 0) fleet.Arrive(5, 2, absl::Minutes(4), "high");  // more than the fleet can take
    fleet.Tick(absl::Seconds(20));
  }
  // Five points of priority are worth 50 minutes of waiting; then it is the next whose turn it is.
  EXPECT_GT(fleet.jobs()[0].started, absl::Minutes(40));
  EXPECT_LT(fleet.jobs()[0].started, absl::Minutes(80));
}

TEST(GangSimulationTest, ProjectsUseLearnersByTheirWeights) {
  FleetSimulation fleet(2, 8);
  fleet.weights = {{"a", 1}, {"b", 3}};
  for (int i = 0; i < 5000; ++i) {
    // Both always have something waiting.
    std::map<std::string, int> waiting;
    for (const auto& job : fleet.jobs()) waiting[job.gang.project] += !job.done && !job.gang.running ? 1 : 0;
    for (const char* project : {"a", "b"}) {
      for (; waiting[project] < 10; ++waiting[project]) fleet.Arrive(0, 1, absl::Minutes(3), project);
    }
    fleet.Tick(absl::Seconds(20));
    if (fleet.jobs().size() > 1500) break;
  }
  const auto used = fleet.used();
  EXPECT_NEAR(used.at("b") / used.at("a"), 3.0, 0.4);
}

}  // namespace
}  // namespace rlhf::coordinator
