// What the flags of rlhfctl's commands become: the requests, as a service gets them that answers anything with nothing.
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "common/durable_file.h"
#include "common/rpc_server.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;

class Recorder final : public grpc::CallbackGenericService {
 public:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    return new Call(this, context->method());
  }
  // The newest call's, "Method field: value …".
  std::string newest() const {
    const absl::MutexLock lock(&mu_);
    return newest_;
  }
  // From now on; of several one after the other, and then the last.
  template <typename Message>
  void Answer(const std::string& method, const std::vector<Message>& messages) {
    const absl::MutexLock lock(&mu_);
    answers_[method].clear();
    for (const Message& message : messages) answers_[method].push_back(message.SerializeAsString());
  }
  template <typename Message>
  void Answer(const std::string& method, const Message& message) {
    Answer(method, std::vector<Message>{message});
  }

 private:
  class Call final : public grpc::ServerGenericBidiReactor {
   public:
    Call(Recorder* recorder, std::string method) : recorder_(recorder), method_(std::move(method)) {
      StartRead(&request_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      const grpc::Slice answer(recorder_->Took(method_, request_));
      answer_ = grpc::ByteBuffer(&answer, 1);
      StartWriteAndFinish(&answer_, {}, grpc::Status::OK);
    }
    void OnDone() override { delete this; }

   private:
    Recorder* const recorder_;
    const std::string method_;
    grpc::ByteBuffer request_, answer_;
  };

  std::string Took(const std::string& path, const grpc::ByteBuffer& request) {
    const std::string name = absl::StrReplaceAll(path.substr(1), {{"/", "."}});
    const auto* method = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name);
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(request.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    const absl::MutexLock lock(&mu_);
    if (method == nullptr) {
      ADD_FAILURE() << "no method " << name;
      return "";
    }
    const std::unique_ptr<google::protobuf::Message> message(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(method->input_type())->New());
    EXPECT_TRUE(message->ParseFromString(bytes)) << name;
    newest_ = absl::StrCat(method->name(), " ", message->ShortDebugString());
    std::deque<std::string>& answers = answers_[method->name()];
    const std::string answer = answers.empty() ? "" : answers.front();
    if (answers.size() > 1) answers.pop_front();
    return answer;
  }

  mutable absl::Mutex mu_;
  std::string newest_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::deque<std::string>> answers_ ABSL_GUARDED_BY(mu_);
};

// "Method field: value …" with the fields in their order.
std::string InOrder(const std::string& call) {
  const size_t space = call.find(' ');
  for (const char* service : {"Admin", "Artifact", "Feedback", "Job", "Log", "Oversight"}) {
    const auto* method = google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(
        absl::StrCat("rlhf.v1.", service, "Service.", call.substr(0, space)));
    if (method == nullptr) continue;
    const std::unique_ptr<google::protobuf::Message> request(
        google::protobuf::MessageFactory::generated_factory()->GetPrototype(method->input_type())->New());
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(call.substr(space), request.get())) << call;
    return absl::StrCat(method->name(), " ", request->ShortDebugString());
  }
  return call;
}

class RequestsTest : public testing::Test {
 protected:
  RequestsTest() {
    RpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.tls.insecure = true;
    options.otherwise = &recorder_;
    auto server = RpcServer::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    if (server.ok()) server_ = *std::move(server);
    v1::Job job;
    job.set_id("job-1");
    recorder_.Answer("GetJob", job);
  }
  CommandResult Ctl(const std::string& arguments, const std::string& input = "") {
    return RunCommand(absl::StrCat("printf '%s' '", input, "' | ", BinDir(), "/rlhfctl --insecure --address 127.0.0.1:",
                                   server_->port(), " --project p ", arguments));
  }
  Recorder recorder_;
  std::unique_ptr<RpcServer> server_;
  ScratchDir dir_;
};

TEST_F(RequestsTest, FlagsAreAskedFor) {
  const std::string digest = "sha256:" + std::string(64, 'a');
  const std::pair<std::string, std::string> cases[] = {
      {"quota get --submitter ann", "GetQuota project: \"p\" submitter: \"ann\""},
      {"quota set --submitter ann --max-jobs 1 --max-learners 2 --max-rollout-workers 3 --max-score-requests 4 "
       "--weight 0.5",
       "SetQuota quota { project: \"p\" submitter: \"ann\" max_jobs: 1 max_learners: 2 max_rollout_workers: 3 "
       "max_score_requests: 4 weight: 0.5 }"},
      {"workers drain w", "DrainWorker instance_id: \"w\""},
      {"workers cordon w", "CordonWorker instance_id: \"w\""},
      {"workers cordon w --undo", "CordonWorker instance_id: \"w\" uncordon: true"},
      {"token create --subject ann --role viewer --role Admin --days 2",
       "CreateToken subject: \"ann\" project: \"p\" roles: VIEWER roles: ADMIN ttl_seconds: 172800"},
      {"token revoke t", "RevokeToken id: \"t\""},
      {"feedback export --set s --planted --exclude-rater ann --exclude-rater bob",
       "ExportComparisons job_id: \"set:s\" project: \"p\" include_planted: true exclude_raters: \"ann\" "
       "exclude_raters: \"bob\""},
      {"feedback export --job j", "ExportComparisons job_id: \"j\" project: \"p\""},
      {"feedback next --job j --limit 3 --wait 2", "NextTasks job_id: \"j\" max_tasks: 3 wait_ms: 2000 project: \"p\""},
      {"feedback submit t --job j --prefer second --strength 0.5 --rate honest=1 --rate-second honest=-2.5 --written W "
       "--comment C",
       "SubmitFeedback answers { task_id: \"t\" job_id: \"j\" preference: SECOND strength: 0.5 first_ratings { key: "
       "\"honest\" "
       "value: 1 } second_ratings { key: \"honest\" value: -2.5 } written: \"W\" comment: \"C\" }"},
      {"feedback submit t --job j --prefer tie",
       "SubmitFeedback answers { task_id: \"t\" job_id: \"j\" preference: TIE }"},
      {"feedback submit t --job j --skip --comment C", "SkipTask job_id: \"j\" task_id: \"t\" reason: \"C\""},
      {"feedback agreement --set s", "GetAgreement job_id: \"set:s\" project: \"p\""},
      {"feedback freeze --job j --name n --exclude-rater ann --exclude-flagged --edits",
       "FreezeSet job_id: \"j\" name: \"n\" project: \"p\" exclude_raters: \"ann\" exclude_flagged: true edits_as_sft: "
       "true"},
      {"feedback freeze --set s --name n --pair-ratings",
       "FreezeSet job_id: \"set:s\" name: \"n\" project: \"p\" pair_ratings: true"},
      {"feedback forget ann", "ForgetRater rater: \"ann\""},
      {"gate approve g --report abc --comment C",
       "DecideGate gate_id: \"g\" approve: true comment: \"C\" report_sha256: \"abc\""},
      {"gate reject g --comment C", "DecideGate gate_id: \"g\" comment: \"C\""},
      {"service halt --reason why", "HaltService reason: \"why\""},
      {"service resume --reason why", "ResumeService reason: \"why\""},
      {"audit show --model m", "GetLineage project: \"p\" model: \"m\""},
      {"models list", "ListArtifacts kind: \"model\" project: \"p\""},
      {"checkpoints list", "ListArtifacts kind: \"checkpoint\" project: \"p\""},
      {"models pin " + digest, "PinArtifact digest: \"" + digest + "\" pinned: true"},
      {"models pin --remove " + digest, "PinArtifact digest: \"" + digest + "\""},
      {"models alias name " + digest, "SetAlias alias: \"name\" digest: \"" + digest + "\" project: \"p\""},
      {"models alias name", "SetAlias alias: \"name\" project: \"p\" remove: true"},
      {"logs job --level warn --follow", "FollowLogs job_id: \"job-1\" follow: true min_level: \"warn\""},
      {"logs", "FollowLogs min_level: \"info\""},
      {"list --stages", "ListJobs include_stages: true project: \"p\""},
      {"get job", "GetJob job_id: \"job\" project: \"p\""},
      {"samples job --step 0 --limit 7", "ListSamples job_id: \"job-1\" step: 0 page { page_size: 7 }"},
      {"cancel job", "CancelJob job_id: \"job-1\""},
      {"cancel job --reason why", "CancelJob job_id: \"job-1\" reason: \"why\""},
  };
  for (const auto& [arguments, request] : cases) {
    const CommandResult result = Ctl(arguments);
    EXPECT_EQ(InOrder(recorder_.newest()), InOrder(request)) << arguments << "\n" << result.output;
  }
}

TEST_F(RequestsTest, ListingsHaveAllTheirPages) {
  std::vector<v1::ListTokensResponse> tokens(2);
  tokens[0].add_tokens()->set_id("one");
  tokens[0].mutable_tokens(0)->set_revoked(true);
  tokens[0].set_next_page_token("1");
  tokens[1].add_tokens()->set_id("other");
  recorder_.Answer("ListTokens", tokens);
  EXPECT_THAT(Ctl("token list").output, testing::ContainsRegex("\none .* yes\nother .*[^s]\n"));
  EXPECT_THAT(recorder_.newest(), HasSubstr("page_token: \"1\""));
  std::vector<v1::ListWorkersResponse> workers(2);
  workers[0].add_workers()->set_instance_id("one");
  workers[0].set_next_page_token("one");
  workers[1].add_workers()->set_instance_id("other");
  workers[1].mutable_workers(0)->set_seconds_since_heartbeat(-1);
  workers[1].mutable_workers(0)->set_slots(8);
  workers[1].mutable_workers(0)->set_leased(3);
  recorder_.Answer("ListWorkers", workers);
  const std::string listed = Ctl("workers list").output;
  EXPECT_THAT(listed, testing::ContainsRegex("\none .* 0.0 s ago\n"));
  EXPECT_THAT(listed, testing::ContainsRegex("\nother .* 3/8 .* away\n"));
}

TEST_F(RequestsTest, SamplesAreNoMoreThanWereAskedFor) {
  v1::ListSamplesResponse page;
  page.add_samples()->mutable_sample()->set_response_text("answer");
  page.add_samples()->set_problem("its segment is damaged");
  page.set_next_page_token("2");
  recorder_.Answer("ListSamples", page);
  const std::string samples = Ctl("samples job --limit 2").output;
  EXPECT_EQ(recorder_.newest(), "ListSamples job_id: \"job-1\" page { page_size: 2 }");
  EXPECT_THAT(samples, testing::AllOf(HasSubstr(" answer\n"), HasSubstr(" (its segment is damaged)\n")));
  v1::ListQuotasResponse quotas;
  quotas.add_quotas()->set_project("p");
  quotas.mutable_quotas(0)->set_max_jobs(3);
  recorder_.Answer("ListQuotas", quotas);
  EXPECT_THAT(Ctl("quota list").output, testing::ContainsRegex("\np +\\(all\\) +3 +- +- +- "));
}

TEST_F(RequestsTest, AJobGoesWithItsRequestIdProjectAndUploads) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("d.jsonl"), "{}\n").ok());
  const std::string job = dir_.File("job.yaml");
  ASSERT_TRUE(WriteFileDurably(job, "name: a\nsft:\n  model: m\n  data: ${data}\n").ok());
  EXPECT_EQ(Ctl("submit --set data=d --request-id r " + job).code, 0);
  EXPECT_EQ(recorder_.newest(),
            "SubmitJob request_id: \"r\" spec { name: \"a\" project: \"p\" sft { model: \"m\" data: \"d\" } }");
  EXPECT_EQ(Ctl("submit --set =d " + job).code, 2);
  ASSERT_TRUE(WriteFileDurably(job, "name: a\nproject: own\nsft: {model: m, data: \"file:d.jsonl\"}\n").ok());
  EXPECT_EQ(Ctl("validate " + job).code, 0);
  EXPECT_THAT(recorder_.newest(),
              testing::MatchesRegex("ValidateJob spec .*project: \"own\".*uploads: \"sha256:[0-9a-f]+\""));
}

TEST_F(RequestsTest, AGateIsApprovedByWhoTypesItsReportsDigest) {
  v1::ListGatesResponse gates;
  v1::GateRow& gate = *gates.add_gates();
  gate.set_id("g");
  gate.set_state(v1::GATE_WAITING);
  gate.set_report_sha256("0123456789abcdef");
  v1::ConditionResult& condition = *gate.add_results();
  condition.mutable_condition()->set_metric("known.accuracy");
  condition.mutable_condition()->set_min(0.9);
  condition.mutable_found()->set_value(0.5);
  *gates.add_gates() = gate;
  gates.mutable_gates(1)->set_id("done");
  gates.mutable_gates(1)->set_state(v1::GATE_APPROVED);
  gates.mutable_gates(1)->add_approvals()->set_approved(true);
  gates.mutable_gates(1)->add_approvals();
  recorder_.Answer("ListGates", gates);
  for (const char* typed : {"", "0123", "0123456789abcdefg", "12345678"}) {
    const CommandResult refused = Ctl("gate approve g", typed);
    EXPECT_EQ(refused.code, 1) << typed;
    EXPECT_THAT(recorder_.newest(), HasSubstr("ListGates")) << typed;
  }
  const CommandResult approved = Ctl("gate approve g", "01234567");
  EXPECT_EQ(recorder_.newest(), "DecideGate gate_id: \"g\" approve: true report_sha256: \"0123456789abcdef\"");
  EXPECT_THAT(approved.output, testing::ContainsRegex("known.accuracy +0.9 +0.5 +NO")) << "it was shown";
  const std::string waiting = Ctl("gate list").output, all = Ctl("gate list --all").output;
  EXPECT_THAT(waiting, testing::AllOf(HasSubstr("\ng "), testing::Not(HasSubstr("\ndone "))));
  EXPECT_THAT(all, testing::ContainsRegex("done +approved +1/0 +0/1"));
}

TEST_F(RequestsTest, ALedgerThatDoesNotAddUpIsAFailure) {
  v1::GetLedgerResponse ledger;
  ledger.mutable_counts()->set_issued(3);
  ledger.mutable_counts()->set_trained(3);
  recorder_.Answer("GetLedger", ledger);
  EXPECT_EQ(Ctl("ledger job").code, 0);
  EXPECT_EQ(recorder_.newest(), "GetLedger job_id: \"job-1\"");
  ledger.mutable_counts()->set_trained(2);
  recorder_.Answer("GetLedger", ledger);
  const CommandResult lost = Ctl("ledger job");
  EXPECT_EQ(lost.code, 1);
  EXPECT_THAT(lost.output, HasSubstr("violation: the states add up to 2, not to issued, 3"));
  ledger.mutable_counts()->set_failed(1);
  ledger.add_violations("step 2: gone");
  recorder_.Answer("GetLedger", ledger);
  EXPECT_EQ(Ctl("ledger job").code, 1);
}

TEST_F(RequestsTest, AnAnswerThatIsNotTakenIsAFailure) {
  v1::SubmitFeedbackResponse response;
  response.add_verdicts()->set_problem("it was answered");
  recorder_.Answer("SubmitFeedback", response);
  const CommandResult result = Ctl("feedback submit t --job j --prefer first");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.output, HasSubstr("not taken: it was answered"));
  for (const char* rate : {"honest", "honest=", "honest=x", "honest=1x"})
    EXPECT_EQ(Ctl(absl::StrCat("feedback submit t --job j --rate ", rate)).code, 2) << rate;
}

}  // namespace
}  // namespace rlhf::cli
