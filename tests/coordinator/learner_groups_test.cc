// Groups that form, break, shrink and grow; learners and time are the test's.
#include "coordinator/learner_groups.h"

#include <functional>
#include <map>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/status_util.h"
#include "tests/coordinator/manual_loop.h"

namespace rlhf::coordinator {
namespace {

class LearnerGroupsTest : public testing::Test, public TrainingListener {
 protected:
  void Add(int ranks, int min_ranks, const std::string& job = "job", int priority = 0, uint64_t last_epoch = 0) {
    TrainingPlan plan;
    plan.job_id = job;
    plan.priority = priority;
    plan.ranks = ranks;
    plan.min_ranks = min_ranks;
    groups_->AddJob(plan, last_epoch, this);
    loop_.Run();
  }
  v1::GroupAssignment OnGroupForming(const std::string&, uint64_t, int, const v1::PolicyVersion* held,
                                     const std::string&) override {
    held_step_ = held == nullptr ? -1 : held->step();
    events_ += "forms ";
    return {};
  }
  const v1::PolicyVersion* Committed(const std::string&) override { return &committed_; }
  bool LosesSteps(const std::string&) const override { return loses_steps_; }
  int64_t StepOf(const std::string&) const override { return step_; }
  void OnGroupLost(const std::string&, const std::string& why) override {
    ++lost_;
    why_ = why;
    events_ += "lost ";
    if (withdraws_) groups_->RemoveJob("job");
  }
  void OnYield(const std::string& job_id, const std::string&) override { yields_.push_back(job_id); }

  std::string Register(const std::string& instance, const std::string& version = "1") {
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_LEARNER);
    request.set_instance_id(instance);
    request.set_protocol_version(1);
    request.set_build_version(version);
    std::string session;
    fleet_->Register(request, [&](absl::StatusOr<v1::RegisterResponse> response) { session = response->session_id(); });
    loop_.Run();
    return session;
  }
  void Join(const std::string& session, int64_t held_step = 0, const std::string& left_because = "", int share = 0,
            int shares = 0, const std::string& held_job = "job") {
    v1::JoinGroupRequest request;
    request.set_session_id(session);
    request.set_wait_ms(wait_ms_);
    request.set_left_because(left_because);
    if (held_step > 0) {
      request.set_held_job_id(held_job);
      request.mutable_held()->set_step(held_step);
      request.set_held_share(share);
      request.set_held_shares(shares);
    }
    groups_->JoinGroup(
        request,
        [this, session](absl::StatusOr<v1::JoinGroupResponse> response) {
          if (!response.ok() || !response->has_assignment()) return;
          assigned_[session] = response->assignment();
          if (response->assignment().rank() == 0) rank0_ = session;
        },
        std::exchange(gone_, nullptr));
    loop_.Run();
    Answer();
  }
  void Pass(absl::Duration time, const std::vector<std::string>& alive) {
    for (absl::Duration passed; passed < time; passed += absl::Seconds(1)) {
      clock_.Advance(absl::Seconds(1));
      callers_clock_.Advance(absl::Seconds(1));
      for (const std::string& session : alive) {
        v1::HeartbeatRequest request;
        request.set_session_id(session);
        fleet_->Heartbeat(request, [](absl::StatusOr<v1::HeartbeatResponse>) {});
      }
      fleet_->Tick();
      groups_->Tick();
      loop_.Run();
      Answer();
    }
  }
  // Rank 0's rendezvous lets the others in.
  void Answer() {
    if (rank0_.empty() || !publishes_) return;
    v1::PublishRendezvousRequest publish;
    publish.set_job_id(assigned_[rank0_].job_id());
    publish.set_epoch(assigned_[rank0_].epoch());
    publish.set_session_id(std::exchange(rank0_, ""));
    publish.set_address("127.0.0.1:1");
    groups_->PublishRendezvous(publish, [](absl::StatusOr<v1::PublishRendezvousResponse>) {});
    loop_.Run();
  }
  int World(const std::string& session) { return assigned_.count(session) > 0 ? assigned_[session].world_size() : 0; }

  FakeClock clock_, callers_clock_;
  ManualLoop loop_{&clock_};
  std::unique_ptr<Fleet> fleet_ = MakeFleet(&loop_, absl::Seconds(3), absl::Seconds(9));
  std::unique_ptr<LearnerGroups> groups_ = MakeLearnerGroups(&loop_, fleet_.get(), nullptr, &callers_clock_);
  std::map<std::string, v1::GroupAssignment> assigned_;
  std::string rank0_;
  int wait_ms_ = 600'000;
  std::function<bool()> gone_;  // of the next call
  bool publishes_ = true;       // rank 0 does
  int64_t held_step_ = -1;
  int lost_ = 0;
  std::string why_;
  int64_t step_ = 0;
  bool loses_steps_ = false;
  bool withdraws_ = false;  // the job leaves when its group is lost, as a paused one does
  std::string events_;
  std::vector<std::string> yields_;
  v1::PolicyVersion committed_;
};

TEST_F(LearnerGroupsTest, AFixedGroupWaitsForAllItsRanks) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  Join(a);
  Pass(absl::Seconds(20), {a, b});
  EXPECT_EQ(World(a), 0);
  Join(b);
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(b), 2);
  EXPECT_FALSE(groups_->TakeIn("job"));
}

TEST_F(LearnerGroupsTest, ACallThatWasGivenUpMakesNoMember) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  bool gone = false;
  gone_ = [&gone] { return gone; };
  Join(a);
  gone = true;  // killed, or it gave up: its session lives on for a while
  Join(b);
  Pass(absl::Seconds(2), {a, b});
  EXPECT_EQ(events_, "");
  Join(a);
  EXPECT_EQ(events_, "forms ");
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(b), 2);
}

// The loop stood still, and its clock with it; learners gave calls up meanwhile, which nobody has read yet.
TEST_F(LearnerGroupsTest, AStandstillOfTheCoordinatorCostsNoEpoch) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  wait_ms_ = 2000;
  Join(a);
  callers_clock_.Advance(absl::Seconds(9));
  bool gone = false;
  gone_ = [&gone] { return gone; };
  Join(b);
  EXPECT_EQ(events_, "") << "the end of b's call is read right behind it";
  gone = true;
  Join(b);
  Pass(absl::Seconds(1), {a, b});
  EXPECT_EQ(events_, "") << "a's call has waited for longer than it said";
  Join(a);
  EXPECT_EQ(events_, "forms ");
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(b), 2);
  EXPECT_EQ(assigned_[a].epoch(), 1u);
}

TEST_F(LearnerGroupsTest, ASmallerGroupFormsWhenTheDeadHadTheirMoment) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 1);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  const uint64_t epoch = assigned_[a].epoch();
  assigned_.clear();
  Pass(absl::Seconds(10), {a});  // b sends nothing any more
  EXPECT_EQ(lost_, 1);
  EXPECT_TRUE(absl::IsAborted(groups_->Fence("job", epoch, a)));
  Join(a, 7);
  EXPECT_EQ(World(a), 0);  // it may still come back
  Pass(absl::Seconds(6), {a});
  EXPECT_EQ(World(a), 1);
  EXPECT_EQ(held_step_, 7);
  EXPECT_GT(assigned_[a].epoch(), epoch);
}

TEST_F(LearnerGroupsTest, AVersionIsHeldOnlyWhenAllSharesOfItAreThere) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  const auto form = [&](int64_t step_of_a, int share_of_a, int shares_of_a, int64_t step_of_b, int share_of_b,
                        int shares_of_b) {
    held_step_ = 0;
    ++step_;
    assigned_.clear();
    Join(a, step_of_a, "", share_of_a, shares_of_a);
    Join(b, step_of_b, "", share_of_b, shares_of_b);
    EXPECT_EQ(World(a), 2);
    groups_->Break("job", "the next one");
    loop_.Run();
    return held_step_;
  };
  EXPECT_EQ(form(7, 0, 2, 7, 1, 2), 7);
  EXPECT_EQ(form(7, 1, 2, 7, 0, 2), 7) << "whoever has which";
  EXPECT_EQ(form(7, 0, 1, 0, 0, 0), 7) << "one that has all";
  EXPECT_EQ(form(7, 0, 2, 7, 0, 0), 7) << "one that has all, beside a share";
  EXPECT_EQ(form(7, 0, 2, 0, 0, 0), -1) << "the other share died";
  EXPECT_EQ(form(7, 0, 2, 6, 1, 2), -1) << "the other share is of another step";
  EXPECT_EQ(form(7, 0, 2, 7, 1, 3), -1) << "the shares are of different divisions";
  EXPECT_EQ(form(7, 0, 2, 7, 0, 2), -1) << "the same share twice";
}

TEST_F(LearnerGroupsTest, ANewRankIsTakenInAtOnceWhenTheGroupLeavesForIt) {
  const std::string a = Register("a");
  Add(3, 1);
  Join(a);
  Pass(absl::Seconds(6), {a});
  ASSERT_EQ(World(a), 1);
  EXPECT_FALSE(groups_->TakeIn("job"));  // nobody waits
  const std::string b = Register("b");
  Join(b);
  EXPECT_EQ(World(b), 0);
  EXPECT_TRUE(groups_->TakeIn("job"));
  EXPECT_TRUE(groups_->TakeIn("job"));  // the first answer may have been lost
  Join(a, 3);                           // left after the step
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(b), 2);
  EXPECT_EQ(assigned_[a].rank(), 0);  // who holds the weights seeds the others
  EXPECT_EQ(held_step_, 3);
  EXPECT_EQ(events_, "forms lost forms ");  // never the other way round
}

TEST_F(LearnerGroupsTest, WhoSurvivedIsForItsOwnGroup) {
  const std::string a1 = Register("a1"), a2 = Register("a2"), c1 = Register("c1"), c2 = Register("c2");
  Add(2, 2);
  Join(a1);
  Join(a2);
  Add(2, 2, "other");
  Join(c1);
  Join(c2);
  ASSERT_EQ(assigned_[a1].job_id(), "job");
  ASSERT_EQ(assigned_[c1].job_id(), "other");
  assigned_.clear();
  Pass(absl::Seconds(10), {a1, c1});  // one node took a rank of each with it
  Join(c1);
  Join(a1, 5);
  EXPECT_EQ(World(a1) + World(c1), 0);
  const std::string fresh = Register("fresh");
  Join(fresh);
  EXPECT_EQ(World(fresh), 2);
  EXPECT_EQ(World(a1) + World(c1), 2) << "one of the groups is whole again, with its own survivor";
  Join(Register("another"));
  EXPECT_EQ(assigned_[a1].job_id(), "job");
  EXPECT_EQ(assigned_[c1].job_id(), "other");
}

TEST_F(LearnerGroupsTest, WhoHoldsTheWeightsIsAwaitedAfterARestart) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string spare = Register("spare");
  Add(1, 1, "job", 0, /*last_epoch=*/3);
  Join(spare);
  Pass(absl::Seconds(3), {spare});
  EXPECT_EQ(World(spare), 0);
  EXPECT_TRUE(groups_->SituationOf("job").awaits_holders);
  const std::string holder = Register("holder");
  Join(holder, 5);
  EXPECT_EQ(World(holder), 1);
  EXPECT_EQ(held_step_, 5);
  EXPECT_FALSE(groups_->SituationOf("job").awaits_holders);
}

TEST_F(LearnerGroupsTest, AfterARestartNobodyIsAwaitedLongerThanWhoLivesNeedsToReturn) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string spare = Register("spare");
  Add(1, 1, "job", 0, 3);
  Join(spare, 4);  // an older version is as good as none
  Pass(absl::Seconds(8), {spare});
  EXPECT_EQ(World(spare), 0);
  Pass(absl::Seconds(2), {spare});
  EXPECT_EQ(World(spare), 1);
  // With nothing to lose it is not waited for anybody.
  loses_steps_ = false;
  const std::string another = Register("another");
  Add(1, 1, "another job", 0, 3);
  Join(another);
  EXPECT_EQ(World(another), 1);
}

TEST_F(LearnerGroupsTest, AGroupThatAwaitsItsHolderKeepsNoMoreThanItsRanks) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string s1 = Register("s1"), s2 = Register("s2"), s3 = Register("s3");
  Add(1, 1, "job", 0, 3);
  Join(s1);
  Join(s2);
  Join(s3);
  Add(1, 1, "fresh", 0, 0);
  Pass(absl::Seconds(3), {s1, s2, s3});
  EXPECT_EQ(World(s1) + World(s2) + World(s3), 1);
  EXPECT_EQ(World(s1), 0) << "it is the one that is kept";
}

TEST_F(LearnerGroupsTest, WhatOneJobKeepsForItsReturnNoOtherKeepsOrTakes) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string s1 = Register("s1"), s2 = Register("s2"), s3 = Register("s3");
  Add(1, 1, "a", 0, 3);
  Add(1, 1, "b", 0, 3);
  Join(s1);
  Join(s2);
  Add(1, 1, "fresh", 9, 0);
  Pass(absl::Seconds(3), {s1, s2, s3});
  EXPECT_EQ(World(s1) + World(s2), 0) << "one for each of those that return";
  EXPECT_EQ(groups_->SituationOf("fresh").free, 0);
  Join(s3);
  EXPECT_EQ(assigned_[s3].job_id(), "fresh");
  Pass(absl::Seconds(8), {s1, s2, s3});
  EXPECT_EQ(World(s1) + World(s2), 2) << "who held the weights does not come back";
  EXPECT_NE(assigned_[s1].job_id(), assigned_[s2].job_id());
}

TEST_F(LearnerGroupsTest, JobsDoNotSwapTheirLearnersOverARestart) {
  loses_steps_ = true;
  committed_.set_step(5);
  Add(1, 1, "a", 0, 3);
  Add(1, 1, "b", 0, 3);
  const std::string of_b = Register("of b"), of_a = Register("of a");
  Join(of_b, 5, "", 0, 0, "b");
  Pass(absl::Seconds(2), {of_a, of_b});
  Join(of_a, 5, "", 0, 0, "a");
  EXPECT_EQ(assigned_[of_a].job_id(), "a");
  EXPECT_EQ(assigned_[of_b].job_id(), "b");
}

TEST_F(LearnerGroupsTest, ASurvivorThatStillLeavesIsAwaitedThoughOthersAreFree) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string a = Register("a"), b = Register("b"), c = Register("c"), d = Register("d");
  Add(2, 2);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  Join(c);
  Join(d);
  Pass(absl::Seconds(10), {a, c, d});  // b hangs; a waits for it in a collective
  EXPECT_EQ(lost_, 1);
  EXPECT_EQ(World(c) + World(d), 0);
  Join(a, 5);
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(held_step_, 5);
}

TEST_F(LearnerGroupsTest, ASurvivorThatDoesNotLeaveIsGivenUp) {
  loses_steps_ = true;
  committed_.set_step(5);
  const std::string a = Register("a"), b = Register("b"), c = Register("c"), d = Register("d");
  Add(2, 2);
  Join(a);
  Join(b);
  Join(c);
  Join(d);
  Pass(absl::Seconds(35), {a, c, d});
  EXPECT_EQ(World(c), 0);
  Pass(absl::Seconds(10), {a, c, d});
  EXPECT_EQ(World(c), 2);
  EXPECT_EQ(World(d), 2);
}

TEST_F(LearnerGroupsTest, AJobThatIsWithdrawnWhenItsGroupIsLostFormsNoOther) {
  const std::string a = Register("a"), b = Register("b"), spare = Register("spare");
  Add(2, 2);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  Join(spare);
  assigned_.clear();
  events_.clear();
  withdraws_ = true;
  Join(a);  // its collective failed at once; with the spare one there are ranks enough
  EXPECT_EQ(events_, "lost ");
  EXPECT_EQ(World(a), 0);
  EXPECT_EQ(World(spare), 0);
  // Whom it leaves serves others.
  withdraws_ = false;
  Add(2, 2, "other");
  Pass(absl::Seconds(1), {a, spare});
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(spare), 2);
}

TEST_F(LearnerGroupsTest, ALostGroupIsToldBeforeTheNextOneForms) {
  const std::string a = Register("a"), b = Register("b"), spare = Register("spare");
  Add(2, 2);
  Join(a);
  Join(b);
  Join(spare);
  events_.clear();
  Join(a, 3);
  EXPECT_EQ(events_, "lost forms ");
  EXPECT_EQ(World(a), 2);
}

TEST_F(LearnerGroupsTest, WhoHoldsWhatIsCommittedSeedsTheOthers) {
  const std::string ahead = Register("ahead"), right = Register("right");
  committed_.set_step(11);
  Add(2, 2);
  Join(ahead, 12);  // of a lineage that was given up
  Join(right, 11);
  EXPECT_EQ(assigned_[right].rank(), 0);
  EXPECT_EQ(held_step_, 11);
}

TEST_F(LearnerGroupsTest, AGroupThatBreaksAgainAndAgainIsFormedEverLater) {
  const std::string a = Register("a");
  Add(1, 1);
  Join(a);
  for (int breaks = 1; breaks <= 3; ++breaks) {
    assigned_.clear();
    Join(a, 0, "UNAVAILABLE: cannot write here");
    EXPECT_EQ(World(a), 1) << breaks;
    EXPECT_EQ(why_, "a left the group: UNAVAILABLE: cannot write here");
  }
  for (const int seconds : {1, 2, 4, 8, 16, 30, 30}) {
    assigned_.clear();
    Join(a);
    EXPECT_THAT(why_, testing::HasSubstr(absl::StrCat("the next group is formed in ", seconds, "s")));
    EXPECT_EQ(groups_->SituationOf("job").broke, "a left the group");
    EXPECT_EQ(groups_->SituationOf("job").next_in, absl::Seconds(seconds));
    Pass(absl::Seconds(seconds - 1), {a});
    EXPECT_EQ(World(a), 0) << seconds;
    Pass(absl::Seconds(1), {a});
    EXPECT_EQ(World(a), 1) << seconds;
    EXPECT_EQ(groups_->SituationOf("job").broke, "");
  }
  step_ = 1;  // it got somewhere
  assigned_.clear();
  Join(a);
  EXPECT_EQ(World(a), 1);
  EXPECT_EQ(why_, "a left the group");
}

TEST_F(LearnerGroupsTest, AGroupThatIsPutOffKeepsNoFreeLearner) {
  const std::string a = Register("a"), free = Register("free");
  Add(1, 1);
  Join(a);
  for (int breaks = 0; breaks < 7; ++breaks) {
    Join(a);
    Pass(absl::Seconds(30), {a, free});
  }
  Join(a);  // put off for half a minute
  assigned_.clear();
  Add(1, 1, "other");
  EXPECT_EQ(World(a), 0);  // it is the former job's
  Join(free);
  EXPECT_EQ(assigned_[free].job_id(), "other");
}

// Its only learner cannot do for it, whatever the reason: the job that makes room trains most of the time all the same.
TEST_F(LearnerGroupsTest, AJobWhoseGroupsBreakDoesNotTakeOthersLearnersAgainAndAgain) {
  const std::string a = Register("a");
  Add(1, 1, "low");
  Join(a);
  ASSERT_EQ(assigned_[a].job_id(), "low");
  Add(1, 1, "high", 5);
  size_t made_room = 0;
  int trained = 0;  // seconds of an hour
  for (int second = 0; second < 3600; ++second) {
    Pass(absl::Seconds(1), {a});
    if (yields_.size() > made_room) {
      made_room = yields_.size();
      groups_->Release("low", "for the other");
      Join(a);
    } else if (assigned_[a].job_id() == "high") {
      Join(a, 0, "UNAVAILABLE: not on this machine");
    } else {
      ++trained;
    }
  }
  EXPECT_GE(made_room, 3u) << "it is tried again";
  EXPECT_LE(made_room, 12u);
  EXPECT_GE(trained, 3300);
  // One that gets somewhere is tried soon again.
  step_ = 1;
  for (int second = 0; second < 700 && assigned_[a].job_id() != "high"; ++second) {
    Pass(absl::Seconds(1), {a});
    if (yields_.size() > made_room) {
      made_room = yields_.size();
      groups_->Release("low", "for the other");
      Join(a);
    }
  }
  ASSERT_EQ(assigned_[a].job_id(), "high");
  assigned_.clear();
  Join(a, 0, "UNAVAILABLE: once");
  EXPECT_EQ(assigned_[a].job_id(), "high");
}

TEST_F(LearnerGroupsTest, WhatALearnerSaysIsCut) {
  const std::string a = Register("a");
  Add(1, 1);
  Join(a);
  Join(a, 0, std::string(100'000, 'x'));
  EXPECT_EQ(why_.size(), std::string("a left the group: ").size() + 500);
}

// Its first call may have been given up on the way: the coordinator does not know.
TEST_F(LearnerGroupsTest, ALearnerThatAsksTwiceIsOneRank) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  Join(a);
  Join(a);
  EXPECT_EQ(World(a), 0);
  Join(b);
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(b), 2);
  EXPECT_NE(assigned_[a].rank(), assigned_[b].rank());
}

TEST_F(LearnerGroupsTest, OnlyRankZeroSaysWhereTheRanksMeet) {
  publishes_ = false;
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  ASSERT_EQ(World(b), 0) << "it is told once there is a place";
  const auto publish = [&](const std::string& session, const std::string& address) {
    v1::PublishRendezvousRequest request;
    request.set_job_id("job");
    request.set_epoch(assigned_[a].epoch());
    request.set_session_id(session);
    request.set_address(address);
    absl::Status status;
    groups_->PublishRendezvous(request, [&](auto response) { status = response.status(); });
    loop_.Run();
    return status;
  };
  EXPECT_TRUE(absl::IsFailedPrecondition(publish(b, "elsewhere:1")));
  EXPECT_TRUE(absl::IsAborted(publish(Register("stranger"), "elsewhere:2")));
  EXPECT_EQ(World(b), 0);
  EXPECT_TRUE(publish(a, "here:1").ok());
  EXPECT_EQ(World(b), 2);
  EXPECT_EQ(assigned_[b].rendezvous(), "here:1");
}

TEST_F(LearnerGroupsTest, AGroupThatDoesNotFormInTimeIsOver) {
  publishes_ = false;
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  EXPECT_TRUE(groups_->SituationOf("job").forming);
  EXPECT_THAT(groups_->SituationOf("job").not_joined, testing::ElementsAre("b"));
  Pass(absl::Seconds(30), {a, b});
  EXPECT_EQ(lost_, 0);
  Pass(absl::Seconds(1), {a, b});
  EXPECT_EQ(lost_, 1);
  EXPECT_EQ(why_, "the group did not form in time");
  publishes_ = true;
  rank0_.clear();
  Join(a);
  EXPECT_EQ(World(b), 2);
}

TEST_F(LearnerGroupsTest, AMemberHearsWithItsHeartbeatThatItsGroupIsOver) {
  const std::string a = Register("a");
  Add(1, 1);
  Join(a);
  const auto changed = [&](uint64_t epoch) {
    v1::HeartbeatRequest request;
    request.set_session_id(a);
    request.set_group_job_id("job");
    request.set_group_epoch(epoch);
    bool told = false;
    fleet_->Heartbeat(request, [&](auto response) { told = response.ok() && response->group_changed(); });
    return told;
  };
  const uint64_t epoch = assigned_[a].epoch();
  EXPECT_FALSE(changed(epoch));
  EXPECT_TRUE(changed(epoch - 1));
  groups_->Break("job", "its checkpoint is damaged");
  EXPECT_TRUE(changed(epoch));
}

TEST_F(LearnerGroupsTest, AProjectHasNoMoreLearnersThanItsQuota) {
  Quotas quotas;
  v1::Quota bound;
  bound.set_project("p");
  bound.set_max_learners(1);
  WriteBatch batch;
  quotas.Set(bound, &batch);
  groups_.reset();
  fleet_ = MakeFleet(&loop_, absl::Seconds(3), absl::Seconds(9));
  groups_ = MakeLearnerGroups(&loop_, fleet_.get(), &quotas);
  const std::string a = Register("a"), b = Register("b");
  for (const char* job : {"first", "second"}) {
    TrainingPlan plan;
    plan.job_id = job;
    plan.project = "p";
    plan.submitter = "ada";
    groups_->AddJob(plan, 0, this);
  }
  Join(a);
  Join(b);
  EXPECT_EQ(assigned_[a].job_id(), "first");
  EXPECT_EQ(World(b), 0);
  EXPECT_EQ(groups_->SituationOf("second").wait, GangWait::kQuota);
  groups_->RemoveJob("first");
  Pass(absl::Seconds(1), {a, b});
  EXPECT_EQ(assigned_[b].job_id(), "second");
  groups_.reset();  // before the quotas
}

TEST_F(LearnerGroupsTest, ABrokenGroupIsFencedAndFormsAnew) {
  const std::string a = Register("a"), b = Register("b");
  Add(2, 2);
  Join(a);
  Join(b);
  const uint64_t epoch = assigned_[a].epoch();
  EXPECT_TRUE(groups_->Fence("job", epoch, a).ok());
  groups_->Break("job", "its checkpoint is damaged");
  const absl::Status fenced = groups_->Fence("job", epoch, a);
  EXPECT_TRUE(absl::IsAborted(fenced));
  EXPECT_EQ(ReasonOf(fenced), v1::STALE_EPOCH);
  Join(a);
  Join(b);
  EXPECT_EQ(assigned_[b].epoch(), epoch + 1);
}

TEST_F(LearnerGroupsTest, AGroupIsOfOneVersionAndTheOthersWait) {
  const std::string a = Register("a", "1"), b = Register("b", "2");
  Add(2, 2);
  Join(a);
  Join(b);
  Pass(absl::Seconds(40), {a, b});
  EXPECT_EQ(events_, "");
  const LearnerGroups::Situation situation = groups_->SituationOf("job");
  EXPECT_EQ(situation.wait, GangWait::kTooFewLearners);
  EXPECT_EQ(situation.registered, 2);
  EXPECT_EQ(situation.free, 1);
  EXPECT_THAT(situation.versions, testing::ElementsAre(testing::Pair("1", 1), testing::Pair("2", 1)));
  // It holds up nobody who needs less.
  Add(1, 1, "other");
  Pass(absl::Seconds(1), {a, b});
  EXPECT_EQ(assigned_[a].job_id(), "other");
  const std::string c = Register("c", "2");
  Join(c);
  EXPECT_EQ(assigned_[b].job_id(), "job");
  EXPECT_EQ(World(b), 2);
  EXPECT_EQ(World(c), 2);
}

TEST_F(LearnerGroupsTest, TheVersionThatHasTheRanksTrainsOfEqualOnesWhoHoldsTheWeights) {
  const std::string old1 = Register("old1", "1"), old2 = Register("old2", "1");
  const std::string new1 = Register("new1", "2"), new2 = Register("new2", "2");
  for (const std::string& learner : {new1, new2}) Join(learner);
  committed_.set_step(5);
  Join(old1, 5);
  Join(old2);
  Add(2, 2);
  Pass(absl::Seconds(1), {old1, old2, new1, new2});
  EXPECT_EQ(held_step_, 5);
  EXPECT_EQ(assigned_[old1].rank(), 0);
  EXPECT_EQ(World(old2), 2);
  EXPECT_EQ(World(new1), 0);
  // The update goes on: what the last of the old version holds is not worth waiting for others of it.
  Pass(absl::Seconds(10), {old1, new1, new2});
  EXPECT_EQ(lost_, 1);
  Join(old1, 5);
  EXPECT_EQ(held_step_, -1);
  EXPECT_EQ(World(new1), 2);
  EXPECT_EQ(World(new2), 2);
}

TEST_F(LearnerGroupsTest, ALearnerThatCannotTrainAJobIsPassedOverAndTrainsOthers) {
  const std::string a = Register("a"), b = Register("b"), c = Register("c");
  Add(2, 2);
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  groups_->PassOver("job", a, "update this learner", /*beside=*/false);
  loop_.Run();
  EXPECT_EQ(lost_, 1);
  EXPECT_THAT(why_, testing::AllOf(testing::HasSubstr("a: update this learner")));
  assigned_.clear();
  Join(a);
  Join(b);
  Pass(absl::Seconds(40), {a, b, c});
  EXPECT_TRUE(assigned_.empty()) << "two are free, and one of them cannot train it";
  LearnerGroups::Situation situation = groups_->SituationOf("job");
  EXPECT_EQ(situation.free, 1);
  EXPECT_EQ(situation.unsuited, 1);
  EXPECT_THAT(situation.unsuited_why, testing::HasSubstr("a: update this learner"));
  Join(c);
  EXPECT_EQ(assigned_[b].job_id(), "job");
  EXPECT_EQ(assigned_[c].job_id(), "job");
  Add(1, 1, "other");
  Pass(absl::Seconds(1), {a, b, c});
  EXPECT_EQ(assigned_[a].job_id(), "other");
}

// Else it would be first in line with learners that it cannot have, and nobody would get any.
TEST_F(LearnerGroupsTest, AJobWhoseLearnersCannotTrainItHoldsUpNobody) {
  const std::string a = Register("a"), b = Register("b");
  Add(1, 1, "job", /*priority=*/5);
  for (const std::string& learner : {a, b}) {
    Join(learner);
    ASSERT_EQ(assigned_[learner].job_id(), "job");
    groups_->PassOver("job", learner, "another release", /*beside=*/false);
    loop_.Run();
  }
  assigned_.clear();
  Join(a);
  Join(b);
  Add(2, 2, "other");
  Pass(absl::Seconds(2), {a, b});
  EXPECT_EQ(assigned_[a].job_id(), "other");
  EXPECT_EQ(assigned_[b].job_id(), "other");
  Pass(absl::Seconds(40), {a, b});
  EXPECT_EQ(groups_->SituationOf("job").wait, GangWait::kTooFewLearners);
  // Started anew it is asked again.
  const std::string again = Register("a");
  Join(again);
  Pass(absl::Seconds(40), {again, b});  // the other group's turn, which lost it, is over then
  EXPECT_EQ(assigned_[again].job_id(), "job");
}

TEST_F(LearnerGroupsTest, WhoCannotTrainAnotherJobThatWaitsIsTakenFirst) {
  const std::string a = Register("a"), b = Register("b"), c = Register("c");
  Add(2, 2);
  Join(a);
  Join(b);
  groups_->PassOver("job", b, "another release", /*beside=*/false);
  loop_.Run();
  assigned_.clear();
  Join(a);
  Pass(absl::Seconds(40), {a, b, c});  // its turn is over: who is free may be another's
  Join(b);
  Add(1, 1, "other");
  Pass(absl::Seconds(1), {a, b, c});
  EXPECT_EQ(assigned_[b].job_id(), "other");
  EXPECT_EQ(assigned_.count(a), 0u);
  Join(c);
  EXPECT_EQ(assigned_[a].job_id(), "job");
  EXPECT_EQ(assigned_[c].job_id(), "job");
}

// Nothing of the job is trained yet, and two of the three are alike.
TEST_F(LearnerGroupsTest, WhoIsUnlikeItsRank0IsTriedBesideOthers) {
  const std::string a = Register("a"), b = Register("b"), c = Register("c");
  const auto differs = [&](const std::string& session) { return session == a; };  // b and c are alike
  for (const std::string& learner : {a, b, c}) Join(learner);
  Add(2, 2);
  Pass(absl::Seconds(1), {a, b, c});
  int groups = 0;
  for (; groups < 10; ++groups) {
    std::string first, second;
    for (const auto& [session, assignment] : assigned_) {
      if (assignment.world_size() == 2) (assignment.rank() == 0 ? first : second) = session;
    }
    ASSERT_FALSE(first.empty() || second.empty()) << "after " << groups;
    if (differs(first) == differs(second)) break;
    groups_->PassOver("job", second, "unlike", /*beside=*/true);
    loop_.Run();
    assigned_.clear();
    Join(second);
    Join(first);
    Pass(absl::Seconds(35), {a, b, c});
  }
  EXPECT_LT(groups, 10);
}

TEST_F(LearnerGroupsTest, AGroupBreaksForNoLearnerOfAnotherVersion) {
  const std::string a = Register("a", "1");
  Add(2, 1);
  Join(a);
  Pass(absl::Seconds(6), {a});
  ASSERT_EQ(World(a), 1);
  const std::string other = Register("other", "2"), another = Register("another", "2");
  Join(other);
  EXPECT_FALSE(groups_->TakeIn("job"));
  const std::string same = Register("same", "1");
  Join(same);
  Join(another);
  EXPECT_TRUE(groups_->TakeIn("job"));
  Join(a, 3);
  EXPECT_EQ(World(a), 2);
  EXPECT_EQ(World(same), 2);
  EXPECT_EQ(World(other) + World(another), 0);
}

TEST_F(LearnerGroupsTest, NobodyMakesRoomForAJobThatWouldHaveItsRanksInTwoVersions) {
  const std::string a = Register("a", "1"), b = Register("b", "1"), c = Register("c", "2"), d = Register("d", "2");
  Add(1, 1, "equal", 10);
  Join(a);
  Add(1, 1, "low");
  Join(c);
  ASSERT_EQ(assigned_[a].job_id(), "equal");
  ASSERT_EQ(assigned_[c].job_id(), "low");
  Add(2, 2, "high", 10);
  Join(b);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_THAT(yields_, testing::IsEmpty());
  // What is free is meanwhile for one that could make room again, and for no other.
  Add(1, 1, "as high", 10);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_EQ(World(b), 0);
  Add(1, 1, "a lower");
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_EQ(assigned_[b].job_id(), "a lower");
  Join(d);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_THAT(yields_, testing::ElementsAre("low")) << "not the one whose learner is of another version";
}

TEST_F(LearnerGroupsTest, TheFirstInLineKeepsNoLearnersOfAVersionThatHasTooFewForIt) {
  const std::string a = Register("a", "1"), b = Register("b", "1"), c = Register("c", "1"), d = Register("d", "2");
  Add(2, 2, "going");
  Join(a);
  Join(b);
  ASSERT_EQ(World(a), 2);
  Add(3, 3, "large");
  Pass(absl::Seconds(1), {a, b, c, d});
  Add(1, 1, "small");
  Add(1, 1, "smaller");
  Join(c);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_EQ(World(c), 0) << "kept for the large one";
  Join(d);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_EQ(assigned_[d].job_id(), "small") << "which will never have this one";
  EXPECT_EQ(World(c), 0);
  EXPECT_EQ(groups_->SituationOf("large").wait, GangWait::kLearnersBusy);
  EXPECT_EQ(groups_->SituationOf("small").wait, GangWait::kNone);
  EXPECT_EQ(groups_->SituationOf("smaller").wait, GangWait::kLearnersBusy);
  groups_->RemoveJob("going");
  Join(a);
  Join(b);
  Pass(absl::Seconds(2), {a, b, c, d});
  EXPECT_EQ(assigned_[c].job_id(), "large");
  EXPECT_EQ(World(a), 3);
}

}  // namespace
}  // namespace rlhf::coordinator
