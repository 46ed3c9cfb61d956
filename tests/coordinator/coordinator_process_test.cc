// The real binary: what it prints, how it starts, stops, dies and comes back.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/process.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/learner_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/waiting_job.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;
using Stub = v1::JobService::Stub;

class CoordinatorProcessTest : public testing::Test {
 protected:
  void SetUp() override {
    const char* bin = std::getenv("RLHF_BIN_DIR");
    ASSERT_NE(bin, nullptr) << "run by ctest, or set RLHF_BIN_DIR";
    binary_ = absl::StrCat(bin, "/rlhf-coordinator");
  }
  void TearDown() override {
    if (pid_ > 0) Kill(SIGKILL);
  }

  pid_t Spawn(const std::vector<std::string>& arguments, const std::string& log) {
    std::vector<char*> argv = {binary_.data()};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
      dup2(fd, 1);
      dup2(fd, 2);
      execv(binary_.c_str(), argv.data());
      _exit(127);
    }
    return pid;
  }
  static int ExitCode(pid_t pid) {
    int status = 0;
    EXPECT_EQ(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  std::vector<std::string> Flags() const {
    return {
        "--data-dir", dir_.File("data"), "--insecure", "--ports-file", dir_.File("ports.json"), "--heartbeat-ms", "200",
        "--lease-ms", lease_ms_,         "--grace-ms", grace_ms_};
  }
  void Start() {
    unlink(dir_.File("ports.json").c_str());
    pid_ = Spawn(Flags(), dir_.File("log"));
    // The file appears, whole, when everything is served.
    for (int i = 0; i < 600; ++i) {
      const auto ports = ReadFile(dir_.File("ports.json"));
      if (ports.ok()) {
        const auto json = nlohmann::json::parse(*ports);
        ASSERT_EQ(json["pid"].get<int>(), pid_);
        client::ChannelOptions options;
        options.address = absl::StrCat("127.0.0.1:", json["api"].get<int>());
        options.tls.insecure = true;
        auto channel = client::MakeChannel(options);
        ASSERT_TRUE(channel.ok()) << channel.status();
        channel_ = *channel;
        options.address = absl::StrCat("127.0.0.1:", json["fleet"].get<int>());
        channel = client::MakeChannel(options);
        ASSERT_TRUE(channel.ok()) << channel.status();
        fleet_ = *channel;
        stub_ = v1::JobService::NewStub(channel_);
        return;
      }
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        FAIL() << "the coordinator ended: " << *ReadFile(dir_.File("log"));
      }
      absl::SleepFor(absl::Milliseconds(50));
    }
    FAIL() << "not ready after 30 s: " << *ReadFile(dir_.File("log"));
  }
  // As a learner of the fleet.
  absl::StatusOr<std::string> Register(const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_LEARNER);
    request.set_instance_id(instance);
    request.set_protocol_version(kProtocolVersion);
    v1::RegisterResponse response;
    const auto context = client::MakeContext(absl::Seconds(20));
    RLHF_RETURN_IF_ERROR(FromGrpc(v1::FleetService::NewStub(fleet_)->Register(context.get(), request, &response)));
    return response.session_id();
  }
  absl::StatusOr<v1::GroupAssignment> Join(const std::string& session, int wait_ms, absl::Duration patience) {
    v1::JoinGroupRequest request;
    request.set_session_id(session);
    request.set_wait_ms(wait_ms);
    v1::JoinGroupResponse response;
    const auto context = client::MakeContext(patience);
    RLHF_RETURN_IF_ERROR(FromGrpc(v1::LearnerService::NewStub(fleet_)->JoinGroup(context.get(), request, &response)));
    return response.assignment();
  }
  // The job that it is given within a moment, if any.
  std::string GetsWork(const std::string& instance) {
    const auto session = Register(instance);
    EXPECT_TRUE(session.ok()) << session.status();
    const auto joined = Join(session.value_or(""), /*wait_ms=*/400, absl::Seconds(20));  // less than a session's life
    EXPECT_TRUE(joined.ok()) << joined.status();
    return joined.ok() ? joined->job_id() : "";
  }
  v1::Worker Cordon(const std::string& instance, bool undo) {
    v1::CordonWorkerRequest request;
    request.set_instance_id(instance);
    request.set_uncordon(undo);
    v1::Worker worker;
    const auto context = client::MakeContext(absl::Seconds(20));
    const absl::Status status =
        FromGrpc(v1::AdminService::NewStub(channel_)->CordonWorker(context.get(), request, &worker));
    EXPECT_TRUE(status.ok()) << status;
    return worker;
  }
  v1::Worker Listed(const std::string& instance) {
    v1::ListWorkersResponse response;
    const auto context = client::MakeContext(absl::Seconds(20));
    EXPECT_TRUE(v1::AdminService::NewStub(channel_)->ListWorkers(context.get(), {}, &response).ok());
    for (const v1::Worker& worker : response.workers()) {
      if (worker.instance_id() == instance) return worker;
    }
    return {};
  }
  int Kill(int signal) {
    kill(pid_, signal);
    return ExitCode(std::exchange(pid_, -1));
  }
  absl::StatusOr<v1::Job> Get(const std::string& id) {
    v1::GetJobRequest request;
    request.set_job_id(id);
    v1::Job job;
    const auto context = client::MakeContext(absl::Seconds(20));
    RLHF_RETURN_IF_ERROR(FromGrpc(stub_->GetJob(context.get(), request, &job)));
    return job;
  }

  ScratchDir dir_;
  std::string binary_, lease_ms_ = "600", grace_ms_ = "10000";
  pid_t pid_ = -1;
  std::shared_ptr<grpc::Channel> channel_, fleet_;
  std::unique_ptr<Stub> stub_;
};

TEST_F(CoordinatorProcessTest, AnswersRightAndStopsCleanly) {
  Start();
  EXPECT_EQ(ReasonOf(Get("nothing").status()), v1::UNKNOWN_JOB);
  EXPECT_EQ(Get("nothing").status().code(), absl::StatusCode::kNotFound);
  v1::ValidateJobRequest validate;
  validate.mutable_spec()->set_name("Bad Name");
  v1::ValidateJobResponse problems;
  const auto context = client::MakeContext(absl::Seconds(20));
  ASSERT_TRUE(stub_->ValidateJob(context.get(), validate, &problems).ok());
  EXPECT_GE(problems.problems_size(), 1);

  // A second one on the same folder: one clear error.
  std::vector<std::string> flags = Flags();
  flags[4] = dir_.File("ports2.json");
  EXPECT_EQ(ExitCode(Spawn(flags, dir_.File("log2"))), 1);
  EXPECT_THAT(*ReadFile(dir_.File("log2")), HasSubstr("in use by another coordinator"));

  EXPECT_EQ(Kill(SIGTERM), 0);
}

// A backup is staged when its record in the audit log is durable: that may be after its caller, and the servers, are
// gone.
TEST_F(CoordinatorProcessTest, AWriteThatEndsLateFindsWhatGoesOnWithIt) {
  const char* bin = std::getenv("RLHF_FAULTS_BIN_DIR");
  ASSERT_NE(bin, nullptr) << "run by ctest, or set RLHF_FAULTS_BIN_DIR";
  binary_ = absl::StrCat(bin, "/rlhf-coordinator");
  const std::string armed = dir_.File("armed/any/store.before_commit");
  ASSERT_TRUE(MakeDirs(dir_.File("armed/any")).ok());
  setenv("RLHF_FAILPOINTS_DIR", dir_.File("armed").c_str(), 1);
  setenv("MALLOC_PERTURB_", "165", 1);  // what is freed is overwritten, also where no sanitizer watches
  grace_ms_ = "300";                    // over before the write ends
  Start();
  unsetenv("RLHF_FAILPOINTS_DIR");
  unsetenv("MALLOC_PERTURB_");
  ASSERT_TRUE(WriteFileDurably(armed, "sleep:2000").ok());
  const auto context = client::MakeContext(absl::Milliseconds(500));
  const auto reader = v1::AdminService::NewStub(channel_)->Backup(context.get(), {});
  v1::BackupChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(ReadFile(armed + ".fired").ok()) << "no write is late";
  EXPECT_EQ(Kill(SIGTERM), 0);
}

TEST_F(CoordinatorProcessTest, OfThoseThatStartAtOnceOnOneFolderOneServesAndTheOthersSaySo) {
  constexpr size_t kAtOnce = 4;
  std::vector<pid_t> starting;
  for (size_t i = 0; i < kAtOnce; ++i) {
    starting.push_back(Spawn(
        {"--data-dir", dir_.File("data"), "--insecure", "--ports-file", dir_.File(absl::StrCat("ports-", i, ".json"))},
        dir_.File(absl::StrCat("log-", i))));
  }
  // All but one end.
  std::vector<size_t> ended;
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (ended.size() + 1 < kAtOnce && absl::Now() < deadline) {
    for (size_t i = 0; i < kAtOnce; ++i) {
      int status = 0;
      if (starting[i] <= 0 || waitpid(starting[i], &status, WNOHANG) != starting[i]) continue;
      starting[i] = -1;
      ended.push_back(i);
      EXPECT_EQ(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 1);
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  ASSERT_EQ(ended.size(), kAtOnce - 1);
  for (const size_t i : ended) {
    EXPECT_THAT(*ReadFile(dir_.File(absl::StrCat("log-", i))), HasSubstr("in use by another coordinator (process "));
    EXPECT_FALSE(ReadFile(dir_.File(absl::StrCat("ports-", i, ".json"))).ok()) << "it said that it is ready";
  }
  for (size_t i = 0; i < kAtOnce; ++i) {
    if (starting[i] <= 0) continue;
    while (!ReadFile(dir_.File(absl::StrCat("ports-", i, ".json"))).ok() && absl::Now() < deadline)
      absl::SleepFor(absl::Milliseconds(20));
    EXPECT_THAT(*ReadFile(dir_.File(absl::StrCat("log-", i))), HasSubstr("ready after"));
    pid_ = starting[i];
    EXPECT_EQ(Kill(SIGTERM), 0);
  }
}

TEST_F(CoordinatorProcessTest, AKilledCoordinatorKeepsItsJobs) {
  Start();
  ASSERT_TRUE(UploadWaitingJobInputs(channel_, dir_.path()).ok());
  v1::SubmitJobResponse submitted;
  auto context = client::MakeContext(absl::Seconds(20));
  const grpc::Status status = stub_->SubmitJob(context.get(), WaitingJob("survivor"), &submitted);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Kill(SIGKILL), -SIGKILL);

  for (int i = 0; i < 3; ++i) {
    Start();
    const auto job = Get("survivor");
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->id(), submitted.job().id());
    EXPECT_EQ(job->state(), v1::PENDING);
    // The same request is the same job, also after a restart.
    v1::SubmitJobResponse again;
    context = client::MakeContext(absl::Seconds(20));
    ASSERT_TRUE(stub_->SubmitJob(context.get(), WaitingJob("survivor"), &again).ok());
    EXPECT_EQ(again.job().id(), submitted.job().id());
    EXPECT_EQ(Kill(i == 0 ? SIGTERM : SIGKILL), i == 0 ? 0 : -SIGKILL);
  }
  Start();
  v1::VerifyAuditResponse audit;
  context = client::MakeContext(absl::Seconds(20));
  ASSERT_TRUE(v1::OversightService::NewStub(channel_)->VerifyAudit(context.get(), {}, &audit).ok());
  EXPECT_TRUE(audit.intact()) << audit.problem();
  EXPECT_GE(audit.records(), 1u);
}

TEST_F(CoordinatorProcessTest, ACordonOutlivesAKilledCoordinator) {
  Start();
  ASSERT_TRUE(UploadWaitingJobInputs(channel_, dir_.path()).ok());
  v1::SubmitJobResponse submitted;
  auto context = client::MakeContext(absl::Seconds(20));
  ASSERT_TRUE(stub_->SubmitJob(context.get(), WaitingJob("waiting"), &submitted).ok());
  ASSERT_TRUE(Register("l0").ok());
  ASSERT_EQ(Cordon("l0", false).state(), v1::CORDONED);
  EXPECT_EQ(Kill(SIGKILL), -SIGKILL);

  Start();
  v1::Worker listed = Listed("l0");
  EXPECT_EQ(listed.state(), v1::CORDONED);
  EXPECT_EQ(listed.role(), v1::ROLE_LEARNER);
  EXPECT_LT(listed.seconds_since_heartbeat(), 0) << "away";
  for (int i = 0; i < 5; ++i) EXPECT_EQ(GetsWork("l0"), "");
  listed = Listed("l0");
  EXPECT_EQ(listed.state(), v1::CORDONED);
  EXPECT_GE(listed.seconds_since_heartbeat(), 0);
  std::string job;
  for (int i = 0; i < 50 && job.empty(); ++i) job = GetsWork("l1");
  EXPECT_EQ(job, submitted.job().id()) << "nothing but the cordon keeps l0 from it";
  EXPECT_EQ(GetsWork("l0"), "");

  EXPECT_NE(Cordon("l0", true).state(), v1::CORDONED);
  job.clear();
  for (int i = 0; i < 50 && job.empty(); ++i) job = GetsWork("l0");
  EXPECT_EQ(job, submitted.job().id()) << "once l1 is lost";
  EXPECT_EQ(Kill(SIGKILL), -SIGKILL);
  Start();
  EXPECT_EQ(Listed("l0").instance_id(), "") << "undone for good";
}

// While it is stopped a learner asks to join, gives up and asks again; all of that is read when it goes on.
TEST_F(CoordinatorProcessTest, WhoGaveUpJoiningDuringAStandstillIsNoMember) {
  lease_ms_ = "60000";
  Start();
  ASSERT_TRUE(UploadWaitingJobInputs(channel_, dir_.path()).ok());
  v1::SubmitJobResponse submitted;
  const auto context = client::MakeContext(absl::Seconds(20));
  ASSERT_TRUE(stub_->SubmitJob(context.get(), WaitingJob("waiting"), &submitted).ok());
  const auto session = Register("l0");
  ASSERT_TRUE(session.ok()) << session.status();
  v1::ExplainJobResponse waits;
  for (int i = 0; i < 200 && (waits.waits().empty() || waits.waits(0).reason() != v1::LEARNERS_BUSY); ++i) {
    absl::SleepFor(absl::Milliseconds(50));
    v1::ExplainJobRequest explain;
    explain.set_job_id(submitted.job().id());
    ASSERT_TRUE(stub_->ExplainJob(client::MakeContext(absl::Seconds(20)).get(), explain, &waits).ok());
  }
  ASSERT_EQ(kill(pid_, SIGSTOP), 0);
  int status = 0;
  ASSERT_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
  ASSERT_TRUE(WIFSTOPPED(status)) << "all its threads stand still now";
  for (int i = 0; i < 6; ++i) {
    const auto given_up = Join(*session, /*wait_ms=*/100, absl::Milliseconds(300));
    EXPECT_TRUE(absl::IsDeadlineExceeded(given_up.status())) << given_up.status();
  }
  ASSERT_EQ(kill(pid_, SIGCONT), 0);
  const auto joined = Join(*session, /*wait_ms=*/10'000, absl::Seconds(20));
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ(joined->job_id(), submitted.job().id());
  EXPECT_EQ(joined->epoch(), 1u);
}

TEST_F(CoordinatorProcessTest, ChecksItsConfiguration) {
  std::vector<std::string> flags = Flags();
  flags.push_back("--check-config");
  EXPECT_EQ(ExitCode(Spawn(flags, dir_.File("log"))), 0);
  flags.push_back("--frobnicate");
  EXPECT_EQ(ExitCode(Spawn(flags, dir_.File("log"))), 2);
  EXPECT_THAT(*ReadFile(dir_.File("log")), HasSubstr("frobnicate"));
  EXPECT_EQ(ExitCode(Spawn({"--version"}, dir_.File("log3"))), 0);
  EXPECT_THAT(*ReadFile(dir_.File("log3")), HasSubstr("0.1.0"));
}

}  // namespace
}  // namespace rlhf::coordinator
