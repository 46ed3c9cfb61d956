// validate, submit and token against a service that only pretends; manifests that need none.
#include <deque>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "cli/spec_problems.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/testing/certificates.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

v1::SpecProblem ProblemOf(const std::string& field, const std::string& problem) {
  v1::SpecProblem made;
  made.set_field(field);
  made.set_problem(problem);
  return made;
}

class PickyJobs final : public v1::JobService::Service {
 public:
  grpc::Status ValidateJob(grpc::ServerContext*, const v1::ValidateJobRequest*,
                           v1::ValidateJobResponse* response) override {
    if (!valid) *response->add_problems() = ProblemOf("sft.batch_size", "expected at least 1, found 0");
    return grpc::Status::OK;
  }
  grpc::Status SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest*, v1::SubmitJobResponse*) override {
    return ToGrpc(WithReason(absl::InvalidArgumentError("sft.batch_size: expected at least 1"), v1::INVALID_SPEC));
  }
  grpc::Status GetJob(grpc::ServerContext*, const v1::GetJobRequest* request, v1::Job* job) override {
    const absl::MutexLock lock(&mu);
    job->set_id("job-1");
    job->set_state(watches.empty() ? state : v1::RUNNING);
    job->set_reason_code(reason_code);
    project = request->project();
    return grpc::Status::OK;
  }
  // Each time what it was told to, events and then the end.
  grpc::Status WatchJob(grpc::ServerContext*, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::JobEvent>* writer) override {
    const absl::MutexLock lock(&mu);
    watched.push_back(*request);
    if (watches.empty()) return grpc::Status::OK;
    const auto [events, code] = watches.front();
    watches.pop_front();
    for (const v1::JobEvent& event : events) writer->Write(event);
    return code == grpc::StatusCode::OK ? grpc::Status::OK : grpc::Status(code, "as the test wants it");
  }
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest*, v1::ListJobsResponse*) override {
    return ToGrpc(WithReason(absl::UnavailableError("waiting for the database; try again"), v1::NOT_LEADING));
  }
  bool valid = false;
  absl::Mutex mu;
  v1::JobState state = v1::SUCCEEDED;
  std::string reason_code, project;
  std::deque<std::pair<std::vector<v1::JobEvent>, grpc::StatusCode>> watches;
  std::vector<v1::WatchJobRequest> watched;
};

class Minting final : public v1::AdminService::Service {
 public:
  grpc::Status CreateToken(grpc::ServerContext*, const v1::CreateTokenRequest*,
                           v1::CreateTokenResponse* response) override {
    ++made;
    response->set_secret("rlhf_a_b");
    response->mutable_token()->set_id("a");
    return grpc::Status::OK;
  }
  int made = 0;
};

class JobCommandsTest : public testing::Test {
 protected:
  std::string Command(const std::string& arguments) {
    return absl::StrCat(BinDir(), "/rlhfctl --insecure --address 127.0.0.1:", server_->port(), " ", arguments);
  }
  CommandResult Ctl(const std::string& arguments) { return RunCommand(Command(arguments)); }
  std::string Write(const std::string& name, const std::string& text) {
    EXPECT_TRUE(WriteFileDurably(dir_.File(name), text).ok());
    return dir_.File(name);
  }
  PickyJobs jobs_;
  Minting admin_;
  std::unique_ptr<RpcServer> server_ = ServeOnLoopback({&jobs_, &admin_});
  ScratchDir dir_;
};

TEST(SpecProblemsTest, NamesTheLineOfTheKeyOrOfWhatIsAroundIt) {
  const std::string yaml = R"(name: Bad Name
learners:
  minRanks: 3
pipeline:
  stages:
    - name: one
      sft: {model: m,
            batch_size: 0}
    - name: two
)";
  const auto text = [&](const std::string& field, const std::string& problem) {
    return ProblemText("job.yaml", yaml, ProblemOf(field, problem));
  };
  EXPECT_EQ(text("name", "name: expected letters"), "job.yaml:1: name: expected letters") << "the field is named once";
  EXPECT_EQ(text("learners.min_ranks", "expected 1"), "job.yaml:3: learners.min_ranks: expected 1");
  EXPECT_EQ(text("pipeline.stages[0].sft.batch_size", "x"), "job.yaml:8: pipeline.stages[0].sft.batch_size: x");
  EXPECT_EQ(text("pipeline.stages[0].sft.data", "x"), "job.yaml:7: pipeline.stages[0].sft.data: x");
  EXPECT_EQ(text("pipeline.stages[1]", "x"), "job.yaml:9: pipeline.stages[1]: x");
  for (const char* field : {"pipeline.stages[7].name", "pipeline.stages[2].name"})
    EXPECT_EQ(text(field, "x"), absl::StrCat("job.yaml:5: ", field, ": x"));
  EXPECT_EQ(text("", "expected one of a, b"), "job.yaml: expected one of a, b");
  EXPECT_EQ(text("seed", "x"), "job.yaml: seed: x");
  EXPECT_EQ(ProblemText("job.yaml", "[", ProblemOf("a", "b")), "job.yaml: a: b");
}

TEST_F(JobCommandsTest, WhatIsWrongWithAJobIsNamedByFileAndLine) {
  ASSERT_TRUE(MakeDirs(dir_.File("m")).ok());
  Write("m/config.json",
        R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,)"
        R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,)"
        R"("max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})");
  Write("d.jsonl", "{}\n");
  const std::string job = Write("job.yaml", "name: a\nsft:\n  model: file:m\n  data: file:d.jsonl\n  batch_size: 0\n");
  const CommandResult wrong = Ctl("validate " + job);
  EXPECT_EQ(wrong.code, 2);
  EXPECT_EQ(wrong.output, job + ":5: sft.batch_size: expected at least 1, found 0\n") << "and nothing about memory";
  jobs_.valid = true;
  const CommandResult right = Ctl("validate " + job);
  EXPECT_EQ(right.code, 0);
  EXPECT_THAT(right.output, testing::StartsWith(job + ": valid\n"));
  EXPECT_THAT(right.output, HasSubstr("a learner takes about"));
  // A submit that is refused says the same; without the validation's word, its own.
  const std::string named = Write("named.yaml", "name: a\nsft: {model: m, data: d, batch_size: 0}\n");
  jobs_.valid = false;
  EXPECT_EQ(Ctl("submit " + named).output, named + ":2: sft.batch_size: expected at least 1, found 0\n");
  EXPECT_EQ(Ctl("submit " + named).code, 2);
  jobs_.valid = true;
  EXPECT_THAT(Ctl("submit " + named).output, HasSubstr("error: sft.batch_size: expected at least 1"));
}

v1::JobEvent Message(int64_t sequence, const std::string& job = "job-1") {
  v1::JobEvent event;
  event.set_job_id(job);
  event.set_sequence(sequence);
  event.set_message(absl::StrCat("event ", sequence));
  return event;
}

TEST_F(JobCommandsTest, AWatchGoesOnWhereItWasCutAndExitsAsTheJobEnded) {
  v1::JobEvent bookmark;
  bookmark.set_job_id("job-1");
  bookmark.set_sequence(7);
  bookmark.mutable_bookmark();
  // Stages count events of their own.
  jobs_.watches = {{{Message(3), Message(90, "stage-2"), bookmark}, grpc::StatusCode::UNAVAILABLE},
                   {{}, grpc::StatusCode::OUT_OF_RANGE},
                   {{Message(11)}, grpc::StatusCode::DEADLINE_EXCEEDED},
                   {{Message(12)}, grpc::StatusCode::OK}};
  const CommandResult seen = Ctl("--project red --output json watch by-name");
  EXPECT_EQ(seen.code, 0) << seen.output;
  EXPECT_EQ(jobs_.project, "") << "followed by its id";
  for (const char* text : {"event 3", "event 90", "event 11", "event 12"}) EXPECT_THAT(seen.output, HasSubstr(text));
  EXPECT_THAT(seen.output, Not(HasSubstr("bookmark")));
  ASSERT_EQ(jobs_.watched.size(), 5u) << "and once more, of the job that has ended";
  std::vector<int64_t> tokens;
  for (const v1::WatchJobRequest& request : jobs_.watched) {
    tokens.push_back(request.resume_token());
    EXPECT_EQ(request.job_id(), "job-1");
    EXPECT_TRUE(request.include_stages());
  }
  EXPECT_THAT(tokens, testing::ElementsAre(0, 7, 0, 11, 12));
  const std::tuple<v1::JobState, const char*, int> ends[] = {
      {v1::SUCCEEDED, "", 0}, {v1::FAILED, "DIVERGED", 3}, {v1::CANCELLED, "", 4}, {v1::FAILED, "GATE_CLOSED", 5}};
  for (const auto& [state, reason, code] : ends) {
    jobs_.state = state;
    jobs_.reason_code = reason;
    EXPECT_EQ(Ctl("watch job").code, code) << v1::JobState_Name(state) << reason;
  }
  EXPECT_THAT(Ctl("watch job").output, HasSubstr("next: rlhfctl why job-1"));
  jobs_.watches = {{{}, grpc::StatusCode::PERMISSION_DENIED}};
  EXPECT_EQ(Ctl("watch job").code, 7) << "nothing to wait for";
}

TEST_F(JobCommandsTest, AServerOfAnotherCaIsNoUnreachableOne) {
  TestCertificates theirs("theirs"), others("others");
  RpcServerOptions options;
  options.address = "127.0.0.1:0";
  options.tls = theirs.Issue("coordinator", "c");
  options.services = {&jobs_};
  options.authorizer = [](const auto&...) -> absl::StatusOr<Caller> { return absl::UnauthenticatedError("nobody"); };
  const auto server = RpcServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const CommandResult result = RunCommand(absl::StrCat(BinDir(), "/rlhfctl --address 127.0.0.1:", (*server)->port(),
                                                       " --ca ", others.CaOnly().ca_file, " list"));
  EXPECT_EQ(result.code, 1) << result.output;
  EXPECT_THAT(result.output, HasSubstr("somebody is there, and is no coordinator that the CA vouches for"));
  EXPECT_THAT(result.output, Not(HasSubstr("is the coordinator running")));
}

TEST_F(JobCommandsTest, ACoordinatorThatSaysItCannotServeIsRunning) {
  const CommandResult result = Ctl("list");
  EXPECT_EQ(result.code, 6) << result.output;
  EXPECT_THAT(result.output, HasSubstr("waiting for the database; try again (UNAVAILABLE)"));
  EXPECT_THAT(result.output, Not(HasSubstr("is the coordinator running")));
}

TEST_F(JobCommandsTest, ASecretThatCannotBePrintedIsNamed) {
  const CommandResult lost = RunCommand("( " + Command("token create --subject ann --role viewer") + " 1< /dev/null )");
  EXPECT_EQ(lost.code, 1);
  EXPECT_THAT(lost.output, HasSubstr("`rlhfctl token revoke a` and make another"));
  EXPECT_THAT(lost.output, Not(HasSubstr("rlhf_a_b")));
}

TEST_F(JobCommandsTest, NamesInManifestsAreNamesOnly) {
  const std::string job = Write("job.yaml", "name: mine\nsft: {model: m, data: d, steps: 1, batch_size: 1}\n");
  for (const std::string flags :
       {"--namespace 'a b'", "--namespace Upper", "--namespace -a", "--namespace ''", "--rollout-workers -5",
        "--tag '0.1\n command: [evil]'", "--tag ''", "--registry 'r.example/x y'", "--registry 'r\nx'"}) {
    const CommandResult refused = Ctl("submit --kubernetes " + flags + " " + job);
    EXPECT_EQ(refused.code, 2) << flags;
    EXPECT_THAT(refused.output, HasSubstr(flags.substr(0, flags.find(' ')) + ":")) << flags;
    EXPECT_THAT(refused.output, Not(HasSubstr("kind: JobSet"))) << flags;
  }
  EXPECT_EQ(Ctl("submit --kubernetes --namespace ml-1 --registry localhost:5000/a/b_c --tag v1.2_3-x " + job).code, 0);
  for (const size_t letters : {63, 64}) {
    EXPECT_EQ(Ctl("submit --kubernetes --namespace " + std::string(letters, 'a') + " " + job).code,
              letters == 63 ? 0 : 2);
  }
  // No token is made for a Secret that there cannot be.
  const std::string create = "token create --subject ann --role viewer --kubernetes ";
  EXPECT_EQ(Ctl(create + "--namespace 'A b'").code, 2);
  EXPECT_EQ(Ctl(create + "--secret-name 'B c'").code, 2);
  EXPECT_EQ(Ctl("token create --bootstrap --kubernetes --secret-name 'B c'").code, 2);
  EXPECT_EQ(admin_.made, 0);
  EXPECT_THAT(Ctl(create + "--namespace ml --secret-name ann.token").output, HasSubstr("name: ann.token"));
  EXPECT_EQ(Ctl("pki init --kubernetes --namespace 'A b' --dir " + dir_.File("pki")).code, 2);
}

}  // namespace
}  // namespace rlhf::cli
