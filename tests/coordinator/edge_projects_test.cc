// Every call of the API that names a job or a project, by somebody of another project.
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "coordinator/auth/method_table.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"
#include "tests/coordinator/generic_call.h"
#include "tests/coordinator/waiting_job.h"
#include "tests/testing/run_command.h"

namespace rlhf::coordinator {
namespace {

class ProjectsTest : public CollectFixture {
 protected:
  std::string TokenOfRed(const std::string& subject, const std::vector<v1::TokenRole>& roles) {
    return TokenOf("red", subject, roles);
  }
  std::string TokenOf(const std::string& project, const std::string& subject, const std::vector<v1::TokenRole>& roles) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project(project);
    for (const v1::TokenRole role : roles) request.add_roles(role);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? made->secret() : "";
  }
};

TEST_F(ProjectsTest, NoCallThatNamesAJobServesAnotherProject) {
  UploadSamples();
  const std::string job = Submit(CollectJob());
  ASSERT_EQ(Next(AsRater("anna"), job, 1).tasks_size(), 1);
  const std::string person = TokenOfRed("ada", {v1::VIEWER, v1::SUBMITTER, v1::RATER, v1::OVERSEER}),
                    admin = TokenOfRed("root", {v1::ADMIN});
  std::vector<std::string> walked;
  for (const MethodRule& rule : Rules(Listener::kApi)) {
    const auto* method = FindMethod(rule.method);
    if (method == nullptr || method->client_streaming() || rule.roles.empty()) continue;
    const auto* field = method->input_type()->FindFieldByName("job_id");
    if (field == nullptr || field->is_repeated()) continue;
    walked.push_back(rule.method);
    bool let_in = false;
    for (const std::string& token : {person, admin}) {
      const absl::Status status = CallWith(ApiWithToken(token), *method, {{"job_id", job}});
      const auto reason = ReasonOf(status);
      if (reason == v1::ROLE_NOT_ALLOWED) continue;
      let_in = true;
      EXPECT_EQ(reason, v1::PROJECT_NOT_ALLOWED) << rule.method << ": " << status;
    }
    EXPECT_TRUE(let_in) << rule.method << ": no role came as far as the project";
  }
  EXPECT_GE(walked.size(), 15u) << testing::PrintToString(walked);
  EXPECT_EQ(Get(job).state(), v1::WAITING) << "nobody touched it";
  EXPECT_THAT(RefusedMethods(Api("overseer"), "project", 10), testing::IsSubsetOf(walked));
}

TEST_F(ProjectsTest, WhyNamesNoJobOfAnotherProject) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  const auto red = ApiWithToken(TokenOfRed("ada", {v1::SUBMITTER}));
  ASSERT_TRUE(client::UploadArtifact(red, dir_.path() + "/tiny-model", "model", "red", "tiny").ok());
  Upload("prompts", "{\"prompt\":\"Q\"}\n");
  ASSERT_TRUE(client::UploadArtifact(red, dir_.File("prompts.jsonl"), "data", "red", "prompts").ok());
  v1::JobSpec spec;
  spec.mutable_sample()->set_model("tiny");
  spec.mutable_sample()->set_prompts("prompts");
  spec.set_name("secret");
  spec.set_project("red");
  const std::string secret = Submit(spec, red);
  // The only worker is theirs.
  const auto fleet = v1::FleetService::NewStub(Fleet("rollout_worker", "w0"));
  v1::RegisterRequest hello;
  hello.set_role(v1::ROLE_ROLLOUT_WORKER);
  hello.set_instance_id("w0");
  hello.set_protocol_version(1);
  hello.set_slots(1);
  const auto session = Call(fleet, &v1::FleetService::Stub::Register, hello);
  ASSERT_TRUE(session.ok()) << session.status();
  v1::LeasePromptsRequest want;
  want.set_session_id(session->session_id());
  want.set_max_samples(1);
  want.set_wait_ms(1000);
  int leased = 0;
  for (int tries = 0; leased == 0 && tries < 20; ++tries)
    leased =
        Call(fleet, &v1::FleetService::Stub::LeasePrompts, want).value_or(v1::LeasePromptsResponse()).leases_size();
  ASSERT_EQ(leased, 1);

  spec.set_name("mine");
  spec.set_project("default");
  v1::ExplainJobRequest explain;
  explain.set_job_id(Submit(spec));
  const auto holders = [&](const std::shared_ptr<grpc::Channel>& channel) {
    // Until its prompts are read it waits for these.
    for (int tries = 0; tries < 500; ++tries) {
      const auto why = Call(v1::JobService::NewStub(channel), &JobStub::ExplainJob, explain);
      EXPECT_TRUE(why.ok()) << why.status();
      if (!why.ok()) break;
      for (const v1::Wait& wait : why->waits()) {
        if (wait.reason() == v1::ROLLOUT_WORKERS_BUSY)
          return std::vector<std::string>(wait.held_by().begin(), wait.held_by().end());
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
    return std::vector<std::string>();
  };
  EXPECT_THAT(holders(Api("submitter")), testing::ElementsAre("a job of another project"));
  EXPECT_THAT(holders(ApiWithToken(TokenOf("*", "olga", {v1::VIEWER}))), testing::ElementsAre(secret));
}

bool HasJob(const google::protobuf::Descriptor& message) {
  if (message.full_name() == "rlhf.v1.Job") return true;
  for (int i = 0; i < message.field_count(); ++i) {
    const auto* field = message.field(i)->message_type();
    if (field != nullptr && field->full_name() == "rlhf.v1.Job") return true;
  }
  return false;
}

// Every call that answers with jobs, for one that had to make room for another project's.
TEST_F(ProjectsTest, AJobIsShownWithoutTheOneOfAnotherProjectThatHasItsLearners) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  const auto red = ApiWithToken(TokenOfRed("ada", {v1::SUBMITTER}));
  ASSERT_TRUE(client::UploadArtifact(red, dir_.path() + "/tiny-model", "model", "red", "tiny").ok());
  ASSERT_TRUE(client::UploadArtifact(red, dir_.path() + "/tiny-data.jsonl", "data", "red", "tiny-data").ok());
  v1::SubmitJobRequest theirs = WaitingJob("urgent");
  const auto urgent = Call(v1::JobService::NewStub(red), &JobStub::SubmitJob, theirs);
  ASSERT_TRUE(urgent.ok()) << urgent.status();
  const v1::SubmitJobRequest mine = WaitingJob("mine");
  const auto job = Call(v1::JobService::NewStub(Api("submitter")), &JobStub::SubmitJob, mine);
  ASSERT_TRUE(job.ok()) << job.status();
  const std::string id = job->job().id(), by = urgent->job().id();
  server_.reset();
  {
    const auto store = OpenSqliteStore(dir_.File("data/state.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    v1::Job row;
    ASSERT_TRUE(row.ParseFromString((*store)->Get(Table::kJobs, id).value_or("")));
    row.set_preempted_by(by);
    WriteBatch batch;
    batch.Put(Table::kJobs, id, row.SerializeAsString());
    ASSERT_TRUE((*store)->CommitAndWait(std::move(batch)).ok());
  }
  Start();

  std::set<std::string> shown;
  const auto stub = v1::JobService::NewStub(Api("submitter"));
  const auto shows = [&](const std::string& method, const auto& answer) {
    ASSERT_TRUE(answer.ok()) << method << ": " << answer.status();
    EXPECT_THAT(answer->DebugString(), testing::Not(testing::HasSubstr(by))) << method;
    EXPECT_THAT(answer->DebugString(), testing::HasSubstr("preempted_by: \"a job of another project\"")) << method;
    shown.insert("/rlhf.v1.JobService/" + method);
  };
  v1::GetJobRequest get;
  get.set_job_id(id);
  shows("GetJob", Call(stub, &JobStub::GetJob, get));
  shows("ListJobs", Call(stub, &JobStub::ListJobs, v1::ListJobsRequest()));
  shows("SubmitJob", Call(stub, &JobStub::SubmitJob, mine));
  v1::ExplainJobRequest explain;
  explain.set_job_id(id);
  const auto why = Call(stub, &JobStub::ExplainJob, explain);
  ASSERT_TRUE(why.ok()) << why.status();
  EXPECT_THAT(why->DebugString(), testing::Not(testing::HasSubstr(by)));
  v1::PauseJobRequest pause;
  pause.set_job_id(id);
  shows("PauseJob", Call(stub, &JobStub::PauseJob, pause));
  v1::ResumeJobRequest resume;
  resume.set_job_id(id);
  shows("ResumeJob", Call(stub, &JobStub::ResumeJob, resume));

  const auto all = v1::JobService::NewStub(ApiWithToken(TokenOf("*", "olga", {v1::VIEWER, v1::SUBMITTER})));
  EXPECT_EQ(Call(all, &JobStub::GetJob, get).value_or(v1::Job()).preempted_by(), by) << "who sees all is told";
  // Nobody knows of which project one is that is deleted.
  v1::CancelJobRequest end;
  end.set_job_id(by);
  ASSERT_TRUE(Call(all, &JobStub::CancelJob, end).ok());
  v1::DeleteJobRequest remove;
  remove.set_job_id(by);
  ASSERT_TRUE(Call(all, &JobStub::DeleteJob, remove).ok());
  shows("GetJob", Call(stub, &JobStub::GetJob, get));
  v1::CancelJobRequest cancel;
  cancel.set_job_id(id);
  shows("CancelJob", Call(stub, &JobStub::CancelJob, cancel));

  std::set<std::string> answers_with_jobs;
  for (const MethodRule& rule : Rules(Listener::kApi)) {
    const auto* method = FindMethod(rule.method);
    if (method != nullptr && HasJob(*method->output_type())) answers_with_jobs.insert(rule.method);
  }
  EXPECT_EQ(shown, answers_with_jobs);
}

TEST_F(ProjectsTest, WhoseJobUsesAnArtifactIsNotToldToOthers) {
  ASSERT_TRUE(UploadWaitingJobInputs(Api("submitter"), dir_.path()).ok());
  const auto job = Call(v1::JobService::NewStub(Api("submitter")), &JobStub::SubmitJob, WaitingJob("secret"));
  ASSERT_TRUE(job.ok()) << job.status();
  const auto red = ApiWithToken(TokenOfRed("ada", {v1::SUBMITTER}));
  const auto same = client::UploadArtifact(red, dir_.path() + "/tiny-data.jsonl", "data", "red", "");
  ASSERT_TRUE(same.ok()) << same.status();
  v1::DeleteArtifactRequest remove;
  remove.set_digest(same->digest());
  const auto refused = Call(v1::ArtifactService::NewStub(red), &v1::ArtifactService::Stub::DeleteArtifact, remove);
  EXPECT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().ToString(), testing::Not(testing::HasSubstr("secret")));
  const auto own =
      Call(v1::ArtifactService::NewStub(Api("submitter")), &v1::ArtifactService::Stub::DeleteArtifact, remove);
  EXPECT_THAT(own.status().ToString(), testing::HasSubstr(job->job().id())) << "whose own it is, is told";
}

// With a job, a file and a set of their own: it is the named project that is not theirs.
TEST_F(ProjectsTest, NoCallThatNamesAProjectWritesIntoAnother) {
  UploadSamples();
  const std::string person = TokenOfRed("ada", {v1::VIEWER, v1::SUBMITTER, v1::RATER, v1::OVERSEER}),
                    admin = TokenOfRed("root", {v1::ADMIN});
  const auto red = ApiWithToken(person);
  const auto own = client::UploadArtifact(red, dir_.File("samples.jsonl"), "data", "red", "samples");
  ASSERT_TRUE(own.ok()) << own.status();
  const std::string job = Submit(CollectJob(), red);
  ASSERT_EQ(AnswerAll(v1::FeedbackService::NewStub(red), job), 10);
  const auto theirs = [&](const std::string& name) {
    v1::GetArtifactRequest get;
    get.set_reference(name);
    const auto found =
        Call(v1::ArtifactService::NewStub(Api("submitter")), &v1::ArtifactService::Stub::GetArtifact, get);
    return found.ok() ? found->digest() : found.status().ToString();
  };
  const std::string before = theirs("samples"), no_alias = theirs("taken");
  // These answer about the job, whose project it is that counts.
  const std::set<std::string> of_the_job = {"GetJob", "NextTasks", "ExportComparisons", "GetAgreement"};
  std::vector<std::string> walked;
  for (const MethodRule& rule : Rules(Listener::kApi)) {
    const auto* method = FindMethod(rule.method);
    if (method == nullptr || rule.roles.empty() || of_the_job.count(method->name()) > 0) continue;
    const auto* type = method->input_type();
    const bool names_one = type->FindFieldByName("project") != nullptr || type->FindFieldByName("quota") != nullptr ||
                           type->FindFieldByName("spec") != nullptr;
    if (!names_one) continue;
    walked.push_back(rule.method);
    bool let_in = false;
    for (const std::string& token : {person, admin}) {
      const absl::Status status = CallWith(ApiWithToken(token), *method,
                                           {{"project", "default"},
                                            {"quota", "default"},
                                            {"spec", "default"},
                                            {"job_id", job},
                                            {"name", "taken"},
                                            {"set", "taken"},
                                            {"alias", "taken"},
                                            {"digest", own->digest()},
                                            {"reference", own->digest()},
                                            {"model", own->digest()}});
      const auto reason = ReasonOf(status);
      // The role is refused without a reason's details: before any handler runs.
      if (absl::IsPermissionDenied(status) && reason == v1::ERROR_REASON_UNSPECIFIED) continue;
      let_in = true;
      EXPECT_EQ(reason, v1::PROJECT_NOT_ALLOWED) << rule.method << ": " << status;
    }
    EXPECT_TRUE(let_in) << rule.method << ": no role came as far as the project";
  }
  EXPECT_GE(walked.size(), 14u) << testing::PrintToString(walked);
  EXPECT_EQ(theirs("samples"), before);
  EXPECT_EQ(theirs("taken"), no_alias);
  EXPECT_THAT(RefusedMethods(Api("overseer"), "project", 10), testing::IsSubsetOf(walked));
}

TEST_F(ProjectsTest, NamesOfAnotherProjectsJobsAreNotTold) {
  UploadSamples();
  Submit(CollectJob("secret"));
  const auto stub = v1::JobService::NewStub(ApiWithToken(TokenOfRed("ada", {v1::VIEWER})));
  std::vector<std::string> answers;
  for (const char* name : {"secret", "nothing"}) {
    v1::GetJobRequest get;
    get.set_job_id(name);
    get.set_project("default");
    answers.push_back(Call(stub, &JobStub::GetJob, get).status().ToString());
  }
  EXPECT_EQ(answers[0], answers[1]);
}

// Nobody has to name the project of their own token.
TEST_F(ProjectsTest, EveryCommandWorksWithOnlyATokenOfAnotherProject) {
  std::map<std::string, std::string> files;
  for (const auto& [who, token] :
       {std::pair("person", TokenOfRed("ada", {v1::VIEWER, v1::SUBMITTER, v1::RATER, v1::OVERSEER})),
        std::pair("admin", TokenOfRed("root", {v1::ADMIN}))}) {
    files[who] = dir_.File(absl::StrCat(who, ".token"));
    ASSERT_TRUE(WriteFileDurably(files[who], token).ok());
  }
  const auto as = [&](const std::string& who, const std::string& arguments) {
    return RunCommand(absl::StrCat(BinDir(), "/rlhfctl --address localhost:", server_->ports().at("api"), " --ca ",
                                   certificates_.CaOnly().ca_file, " --token-file ", files[who], " ", arguments));
  };
  const std::string samples = dir_.File("mine.jsonl"), job = dir_.File("job.yaml");
  ASSERT_TRUE(WriteFileDurably(samples,
                               "{\"id\":\"0\",\"index\":0,\"prompt\":\"Q\",\"response\":\"a\"}\n"
                               "{\"id\":\"0\",\"index\":1,\"prompt\":\"Q\",\"response\":\"b\"}\n")
                  .ok());
  ASSERT_TRUE(WriteFileDurably(job, "name: mine\ncollect: {samples: mine, comparisons: 1}\n").ok());
  for (const std::string& arguments : std::vector<std::string>{
           "data push " + samples + " --alias mine", "data list", "data pull mine --out " + dir_.File("pulled"),
           "validate " + job, "submit " + job, "submit --request-id again " + job, "list", "get mine", "why mine",
           "feedback next", "feedback next --job mine", "feedback sets", "ledger mine", "quota get", "gate list",
           "cancel mine"}) {
    const CommandResult result = as("person", arguments);
    EXPECT_EQ(result.code, 0) << arguments << ": " << result.output;
  }
  EXPECT_THAT(as("person", "--output json get mine").output, testing::HasSubstr("\"project\": \"red\""));
  // What is not there is not there; it is not refused.
  for (const char* arguments :
       {"get none", "data pull none --out none", "watch none", "samples none", "trace none", "report none",
        "replay none --out none", "logs none", "pause none", "delete none", "feedback export --set none",
        "feedback agreement --set none", "audit show --model none", "feedback freeze --set none --name none"}) {
    const CommandResult result = as("person", arguments);
    EXPECT_NE(result.code, v1::EXIT_DENIED) << arguments << ": " << result.output;
    EXPECT_NE(result.code, v1::EXIT_USAGE) << arguments << ": " << result.output;
  }
  for (const char* arguments : {"quota set --max-jobs 3", "token create --subject eve --role viewer", "token list"}) {
    const CommandResult result = as("admin", arguments);
    EXPECT_EQ(result.code, 0) << arguments << ": " << result.output;
  }
  EXPECT_THAT(as("admin", "quota list").output, testing::HasSubstr("red"));
  const CommandResult refused = as("person", "--project blue get mine");
  EXPECT_EQ(refused.code, v1::EXIT_DENIED);
  EXPECT_THAT(refused.output, testing::HasSubstr("blue"));
}

// What a person's request id made is theirs in their project: two projects may each have somebody of one name.
TEST_F(ProjectsTest, ARequestIdIsOfItsProject) {
  const auto submitter = [&](const std::string& project, v1::TokenRole role) {
    v1::CreateTokenRequest request;
    request.set_subject("ci");
    request.set_project(project);
    request.add_roles(role);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return ApiWithToken(made->secret());
  };
  v1::CreateTokenRequest create;
  create.set_request_id("nightly");
  create.set_subject("robot");
  create.add_roles(v1::VIEWER);
  const auto admin_stub = [&](const std::string& project) {
    return v1::AdminService::NewStub(submitter(project, v1::ADMIN));
  };
  const auto red = Call(admin_stub("red"), &v1::AdminService::Stub::CreateToken, create);
  const auto blue = Call(admin_stub("blue"), &v1::AdminService::Stub::CreateToken, create);
  ASSERT_TRUE(red.ok() && blue.ok()) << red.status() << " " << blue.status();
  EXPECT_NE(red->secret(), blue->secret());
  EXPECT_EQ(blue->token().project(), "blue");
  EXPECT_EQ(Call(admin_stub("red"), &v1::AdminService::Stub::CreateToken, create)->secret(), red->secret()) << "again";

  UploadSamples();
  v1::SubmitJobRequest submit;
  submit.set_request_id("nightly");
  submit.mutable_spec()->set_name("collect");
  submit.mutable_spec()->mutable_collect()->set_samples("samples");
  submit.mutable_spec()->mutable_collect()->set_comparisons(10);
  const auto ours = Call(v1::JobService::NewStub(submitter("default", v1::SUBMITTER)), &JobStub::SubmitJob, submit);
  ASSERT_TRUE(ours.ok()) << ours.status();
  const auto theirs = Call(v1::JobService::NewStub(submitter("red", v1::SUBMITTER)), &JobStub::SubmitJob, submit);
  EXPECT_EQ(ReasonOf(theirs.status()), v1::UNKNOWN_ARTIFACT)
      << "it has no samples, and no such request: " << theirs.status();
  Restart();
  const auto again = Call(v1::JobService::NewStub(submitter("default", v1::SUBMITTER)), &JobStub::SubmitJob, submit);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->job().id(), ours->job().id());
}

}  // namespace
}  // namespace rlhf::coordinator
