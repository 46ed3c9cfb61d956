// A real network between the coordinator and a worker, or a rank, is cut: both ways, and one way alone. Leases expire
// within three heartbeats, who is cut off commits nothing, and the job goes on and adds up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "tests/faults/namespaces.h"
#include "tests/integration/small_job.h"

namespace rlhf {
namespace {

// Three heartbeats of a second, and slack for a busy machine.
constexpr absl::Duration kLostWithin = absl::Seconds(6);

class NetworkNamespaces : public testing::Test {
 protected:
  void SetUp() override {
    if (!net_.problem().empty()) GTEST_SKIP() << net_.problem();
  }
  // Everything at home but `away`: one rollout worker or learner. before: what to do before the job is submitted.
  void Start(const std::string& away, const SmallJob& job, const std::function<void()>& before = nullptr) {
    LocalServiceOptions options;
    options.faults = true;
    options.up = {"--slots",        "32", "--fleet-address", absl::StrCat(Namespaces::kHome, ":7443"), "--host",
                  Namespaces::kHome};
    options.prepare = [this](const std::string& dir) {
      ASSERT_TRUE(MakeDirs(dir).ok());
      // Learners listen where the others can reach them.
      ASSERT_TRUE(WriteFileDurably(dir + "/listen.sh",
                                   "exec $ENTER $NAMESPACE \"$@\" --address $HOST:0 --advertise-address $HOST\n")
                      .ok());
    };
    service_ = std::make_unique<LocalService>(options, [&](const std::string& dir) {
      std::vector<std::string> words;
      for (const std::string learner : {"learner-0", "learner-1"}) {
        const bool here = learner != away;
        words.insert(words.end(),
                     {"--wrap", absl::StrCat(learner, "=HOST=", here ? Namespaces::kHome : Namespaces::kAway,
                                             here ? "" : " ENTER=nsenter NAMESPACE=--net=",
                                             here ? "" : net_.away_file(), " /bin/sh ", dir, "/listen.sh")});
      }
      if (absl::StartsWith(away, "rollout-"))
        words.insert(words.end(), {"--wrap", absl::StrCat(away, "=nsenter --net=", net_.away_file())});
      return words;
    });
    job_ = job;
    MakeSmallModel(service_->scratch().path());
    if (before) before();
    // Slower than it could be, so that it outlives the cuts.
    service_->Arm("any", "learner/before_step", "sleep:200*");
    ASSERT_NO_FATAL_FAILURE(SubmitSmallJob(*service_, job));
    WaitForStep(2);
  }
  void WaitForStep(int64_t step, absl::Duration patience = absl::Seconds(60)) {
    LocalService::Until(
        patience, [&] { return service_->StepOf(job_.name) >= step; }, absl::StrCat("step ", step));
  }
  size_t LogSize() const { return service_->Log("coordinator").size(); }
  void WaitForLog(const std::string& text, size_t from) {
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Log("coordinator").find(text, from) != std::string::npos; },
        "the coordinator says \"" + text + "\"");
  }
  // Cuts the link and waits until the coordinator has given the instance up, in time.
  void CutOff(const std::string& instance, const Namespaces::Cut& cut) {
    const size_t from = LogSize();
    cut.Begin();
    const absl::Time began = absl::Now();
    WaitForLog(instance + " is lost: it sent no heartbeat", from);
    EXPECT_LT(absl::Now() - began, kLostWithin) << cut.what;
  }
  void Heal(const std::string& instance, const Namespaces::Cut& cut) {
    const size_t from = LogSize();
    cut.End();
    WaitForLog(instance + " registered", from);
  }
  void Finish() {
    service_->Disarm("any", "learner/before_step");
    LocalService::Until(
        absl::Seconds(180), [&] { return service_->StateOf(job_.name) == "SUCCEEDED"; }, "the job succeeds");
    ExpectWhole(*service_, job_);
  }
  void Cordon(const std::string& instance, const std::string& undo = "") {
    // It may be starting just now.
    LocalService::Until(
        absl::Seconds(20), [&] { return service_->Ctl("workers cordon " + instance + undo, "admin.json").code == 0; },
        absl::StrCat("cordon ", instance, undo));
  }
  int Committed(const std::string& learner) const { return static_cast<int>(CommitsSeenBy(*service_, learner).size()); }

  Namespaces net_;
  std::unique_ptr<LocalService> service_;
  SmallJob job_;
};

TEST_F(NetworkNamespaces, AWorkerThatIsCutOffLosesItsLeasesInTimeAndComesBack) {
  SmallJob job;
  job.steps = 260;
  Start("rollout-0", job);
  for (const Namespaces::Cut& cut : net_.Cuts()) {
    SCOPED_TRACE(cut.what);
    // It holds leases when the line goes.
    service_->Arm("rollout-0", "rollout/mid_generation", "sleep:500");
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Fired("rollout-0", "rollout/mid_generation"); }, "it generates");
    CutOff("rollout-0", cut);
    // The other worker does what it had.
    WaitForStep(service_->StepOf(job_.name) + 1);
    Heal("rollout-0", cut);
    ASSERT_FALSE(HasFatalFailure());
  }
  Finish();
}

TEST_F(NetworkNamespaces, ALearnerThatIsCutOffInItsCommitIsReplacedAndFenced) {
  SmallJob job;
  job.steps = 320;
  job.ranks = 1;
  // The one that is away trains first.
  Start("learner-0", job, [this] { Cordon("learner-1"); });
  for (const Namespaces::Cut& cut : net_.Cuts()) {
    SCOPED_TRACE(cut.what);
    Cordon("learner-1", " --undo");
    // Trained, and about to say so.
    service_->Arm("learner-0", "learner/before_commit", "sleep:1500");
    LocalService::Until(
        absl::Seconds(30), [&] { return service_->Fired("learner-0", "learner/before_commit"); }, "it commits");
    const int away = Committed("learner-0"), home = Committed("learner-1");
    const int64_t step = service_->StepOf(job_.name);
    CutOff("learner-0", cut);
    // Past the step that hangs: one that ended with the same bytes would be the other's commit, too.
    LocalService::Until(
        absl::Seconds(40), [&] { return Committed("learner-1") > home && service_->StepOf(job_.name) >= step + 3; },
        "the other learner trains");
    Heal("learner-0", cut);
    // It tries to commit what it has: nobody takes it any more. Where only answers were lost, the commit itself may
    // have been in time, and its answer comes at last.
    WaitForStep(service_->StepOf(job_.name) + 5);
    const int late = Committed("learner-0");
    EXPECT_LE(late, away + (cut.loses_answers_only ? 1 : 0));
    // Back to where it began: the one that is away takes over from the one at home.
    Cordon("learner-1");
    const pid_t other = service_->Pid("learner-1");
    ASSERT_GT(other, 0);  // kill(-1) would end everything
    ASSERT_EQ(kill(other, SIGKILL), 0);
    LocalService::Until(
        absl::Seconds(40), [&] { return Committed("learner-0") > late; }, "the learner that is away trains again");
    ASSERT_FALSE(HasFatalFailure());
  }
  Finish();
  ExpectExactReplay(*service_, job_);
}

TEST_F(NetworkNamespaces, AGroupThatIsCutInTwoCommitsNothingAndFormsAgain) {
  SmallJob job;
  job.steps = 60;
  Start("learner-1", job);
  const pid_t survivor = service_->Pid("learner-0");
  const std::vector<Namespaces::Cut> cuts = net_.Cuts();
  for (const Namespaces::Cut& cut : {cuts[0], cuts[2]}) {
    SCOPED_TRACE(cut.what);
    CutOff("learner-1", cut);
    const int64_t step = service_->StepOf(job_.name);
    absl::SleepFor(absl::Seconds(1.5));  // it may try whatever it likes
    EXPECT_EQ(service_->StepOf(job_.name), step);
    Heal("learner-1", cut);
    WaitForStep(step + 3, absl::Seconds(90));
    ASSERT_FALSE(HasFatalFailure());
  }
  EXPECT_EQ(service_->Pid("learner-0"), survivor);
  Finish();
  ExpectExactReplay(*service_, job_);
}

}  // namespace
}  // namespace rlhf
