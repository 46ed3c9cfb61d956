// Who gets in: a real coordinator with TLS, called over its listeners.
#include <dlfcn.h>
#include <sys/statvfs.h>

#include <atomic>
#include <future>
#include <map>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/learner_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace {

std::atomic<bool> volumes_hang{false};
std::atomic<int> hanging_calls{0};

}  // namespace

// In the place of the C library's, for the coordinator in this process.
extern "C" int statvfs(const char* path, struct statvfs* out) noexcept {
  static const auto real = reinterpret_cast<int (*)(const char*, struct statvfs*)>(dlsym(RTLD_NEXT, "statvfs"));
  if (volumes_hang) ++hanging_calls;
  while (volumes_hang) absl::SleepFor(absl::Milliseconds(10));
  return real(path, out);
}

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

class AccessTest : public CoordinatorFixture {
 protected:
  absl::StatusOr<v1::CreateTokenResponse> CreateToken(const std::string& subject, const std::string& project,
                                                      std::vector<v1::TokenRole> roles,
                                                      const std::string& request_id = "") {
    const auto stub = v1::AdminService::NewStub(Api("admin"));
    v1::CreateTokenRequest request;
    request.set_request_id(request_id);
    request.set_subject(subject);
    request.set_project(project);
    for (const v1::TokenRole role : roles) request.add_roles(role);
    return Call(stub, &v1::AdminService::Stub::CreateToken, request);
  }
  absl::StatusOr<v1::ListJobsResponse> ListJobs(const std::shared_ptr<grpc::Channel>& channel,
                                                const std::string& project) {
    v1::ListJobsRequest request;
    request.set_project(project);
    return Call(v1::JobService::NewStub(channel), &v1::JobService::Stub::ListJobs, request);
  }
  absl::StatusOr<std::string> Register(const std::shared_ptr<grpc::Channel>& channel, v1::Role role,
                                       const std::string& instance) {
    v1::RegisterRequest request;
    request.set_role(role);
    request.set_instance_id(instance);
    request.set_protocol_version(1);
    request.set_slots(4);
    RLHF_ASSIGN_OR_RETURN(const v1::RegisterResponse response,
                          Call(v1::FleetService::NewStub(channel), &v1::FleetService::Stub::Register, request));
    return response.session_id();
  }
  // A refusal does not wait for its record.
  void ExpectRefusalIsAudited(const std::string& subject, const std::string& method) {
    bool found = false;
    for (const absl::Time deadline = absl::Now() + absl::Seconds(20); !found && absl::Now() < deadline;) {
      const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &v1::OversightService::Stub::ListAudit,
                              v1::ListAuditRequest());
      ASSERT_TRUE(audit.ok()) << audit.status();
      for (const v1::AuditRecord& record : audit->records()) {
        found = found || (record.action() == "call.denied" && record.subject() == subject && record.object() == method);
      }
    }
    EXPECT_TRUE(found) << subject << " " << method;
  }
};

TEST_F(AccessTest, NoTokenNoAnswer) {
  for (const auto& channel : {Api(""), ApiWithToken("rlhf_0123_4567"), ApiWithToken("nonsense")}) {
    const auto answer = ListJobs(channel, "");
    EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnauthenticated) << answer.status();
  }
  EXPECT_TRUE(ListJobs(Api("submitter"), "").ok());
}

TEST_F(AccessTest, AWrongRoleIsRefusedAndAudited) {
  v1::HaltServiceRequest halt;
  halt.set_reason("test");
  const auto refused =
      Call(v1::OversightService::NewStub(Api("admin")), &v1::OversightService::Stub::HaltService, halt);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
  ExpectRefusalIsAudited("admin", "/rlhf.v1.OversightService/HaltService");
}

TEST_F(AccessTest, ATokenSeesItsProjectOnly) {
  const auto token = CreateToken("ada", "red", {v1::SUBMITTER});
  ASSERT_TRUE(token.ok()) << token.status();
  const auto channel = ApiWithToken(token->secret());
  EXPECT_TRUE(ListJobs(channel, "").ok());
  EXPECT_TRUE(ListJobs(channel, "red").ok());
  const auto other = ListJobs(channel, "default");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(other.status()), v1::PROJECT_NOT_ALLOWED);
  v1::SubmitJobRequest submit;
  submit.set_request_id("r1");
  submit.mutable_spec()->set_name("job");
  submit.mutable_spec()->set_project("default");
  const auto refused = Call(v1::JobService::NewStub(channel), &v1::JobService::Stub::SubmitJob, submit);
  EXPECT_EQ(ReasonOf(refused.status()), v1::PROJECT_NOT_ALLOWED) << refused.status();
}

TEST_F(AccessTest, ARevokedTokenEndsAtOnce) {
  const auto token = CreateToken("ada", "default", {v1::VIEWER});
  ASSERT_TRUE(token.ok()) << token.status();
  const auto channel = ApiWithToken(token->secret());
  ASSERT_TRUE(ListJobs(channel, "").ok());
  v1::RevokeTokenRequest revoke;
  revoke.set_id(token->token().id());
  ASSERT_TRUE(Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::RevokeToken, revoke).ok());
  EXPECT_EQ(ListJobs(channel, "").status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(AccessTest, TokensAreMintedOnceARequestId) {
  const auto first = CreateToken("ada", "default", {v1::VIEWER}, "r1");
  ASSERT_TRUE(first.ok()) << first.status();
  const auto again = CreateToken("ada", "default", {v1::VIEWER}, "r1");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(first->secret(), again->secret());
  const auto other = CreateToken("bob", "default", {v1::VIEWER}, "r1");
  EXPECT_EQ(other.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(other.status()), v1::REQUEST_ID_REUSED);
  EXPECT_EQ(CreateToken("admin", "*", {v1::OVERSEER}).status().code(), absl::StatusCode::kFailedPrecondition)
      << "the bootstrap admin stays one";
  const auto list =
      Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::ListTokens, v1::ListTokensRequest());
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->tokens_size(), 5) << "four of the start, and ada's";
  for (const v1::TokenRow& row : list->tokens()) EXPECT_TRUE(row.sha256().empty());
}

TEST_F(AccessTest, TokensOutliveARestart) {
  const auto token = CreateToken("ada", "default", {v1::VIEWER});
  ASSERT_TRUE(token.ok()) << token.status();
  const std::string admin = tokens_.at("admin");
  Restart();
  EXPECT_EQ(tokens_.at("admin"), admin) << "the file is written once";
  EXPECT_TRUE(ListJobs(ApiWithToken(token->secret()), "").ok());
}

TEST_F(AccessTest, TheFleetNeedsACertificateOfItsRoleAndInstance) {
  EXPECT_FALSE(Register(Channel("fleet", certificates_.CaOnly(), ""), v1::ROLE_LEARNER, "l0").ok()) << "no certificate";
  TestCertificates others("test");
  EXPECT_FALSE(Register(Channel("fleet", others.Issue("learner", "l0"), ""), v1::ROLE_LEARNER, "l0").ok())
      << "another CA";

  const auto learner = Fleet("learner", "l0");
  const auto session = Register(learner, v1::ROLE_LEARNER, "l0");
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ(Register(learner, v1::ROLE_LEARNER, "l1").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Register(learner, v1::ROLE_ROLLOUT_WORKER, "l0").status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(Register(Fleet("nobody", "l0"), v1::ROLE_LEARNER, "l0").status().code(),
            absl::StatusCode::kPermissionDenied);

  v1::LeasePromptsRequest lease;
  lease.set_session_id(*session);
  const auto wrong_role = Call(v1::FleetService::NewStub(learner), &v1::FleetService::Stub::LeasePrompts, lease);
  EXPECT_EQ(wrong_role.status().code(), absl::StatusCode::kPermissionDenied);
  ExpectRefusalIsAudited("spiffe://test/role/nobody/instance/l0", "/rlhf.v1.FleetService/Register");
  ExpectRefusalIsAudited("spiffe://test/role/learner/instance/l0", "/rlhf.v1.FleetService/LeasePrompts");
  // Somebody else's session.
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_session_id(*session);
  const auto stolen =
      Call(v1::FleetService::NewStub(Fleet("learner", "l9")), &v1::FleetService::Stub::Heartbeat, heartbeat);
  EXPECT_EQ(stolen.status().code(), absl::StatusCode::kPermissionDenied) << stolen.status();
  EXPECT_TRUE(Call(v1::FleetService::NewStub(learner), &v1::FleetService::Stub::Heartbeat, heartbeat).ok());
  heartbeat.set_session_id("unknown");
  EXPECT_EQ(ReasonOf(Call(v1::FleetService::NewStub(learner), &v1::FleetService::Stub::Heartbeat, heartbeat).status()),
            v1::UNKNOWN_SESSION);
  // The two listeners do not serve each other's methods.
  EXPECT_FALSE(ListJobs(learner, "").ok());
  // Of any other version than the neighbours.
  v1::RegisterRequest old;
  old.set_role(v1::ROLE_LEARNER);
  old.set_instance_id("l0");
  old.set_protocol_version(99);
  EXPECT_EQ(ReasonOf(Call(v1::FleetService::NewStub(learner), &v1::FleetService::Stub::Register, old).status()),
            v1::VERSION_MISMATCH);
}

TEST_F(AccessTest, RefusedHandshakesAreCountedAndAudited) {
  TestCertificates others("test");
  TlsFiles foreign = others.Issue("learner", "l0"), ended = certificates_.Issue("learner", "l0");
  foreign.ca_file = ended.ca_file;
  const auto certificate = IssueCertificate(certificates_.ca(), "test", "learner", "l0", {}, /*days=*/-1);
  ASSERT_TRUE(certificate.ok()) << certificate.status();
  ASSERT_TRUE(WriteFileDurably(ended.cert_file, certificate->cert_pem).ok());
  ASSERT_TRUE(WriteFileDurably(ended.key_file, certificate->key_pem).ok());
  const std::map<std::string, TlsFiles> refused = {{"handshake_no_certificate", certificates_.CaOnly()},
                                                   {"handshake_untrusted", foreign},
                                                   {"handshake_expired", ended}};
  for (const auto& [reason, tls] : refused) {
    const auto session = Register(Channel("fleet", tls, ""), v1::ROLE_LEARNER, "l0");
    EXPECT_EQ(session.status().code(), absl::StatusCode::kUnavailable) << reason << ": " << session.status();
  }
  std::set<std::string> audited;
  for (const absl::Time deadline = absl::Now() + absl::Seconds(20);
       audited.size() < refused.size() && absl::Now() < deadline;) {
    const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &v1::OversightService::Stub::ListAudit,
                            v1::ListAuditRequest());
    ASSERT_TRUE(audit.ok()) << audit.status();
    for (const v1::AuditRecord& record : audit->records()) {
      if (record.action() != "handshake.denied") continue;
      EXPECT_EQ(record.object(), "fleet");
      EXPECT_EQ(record.decision(), "denied");
      EXPECT_EQ(record.details().count("count"), 1u);
      audited.insert(record.details().at("reason"));
    }
  }
  httplib::Client http("localhost", server_->ports().at("http"));
  const auto metrics = http.Get("/metrics");
  ASSERT_TRUE(metrics) << "no answer";
  for (const auto& [reason, tls] : refused) {
    EXPECT_EQ(audited.count(reason), 1u) << reason;
    const std::string series = absl::StrCat("rlhf_auth_failures_total{reason=\"", reason, "\"} ");
    EXPECT_THAT(metrics->body, testing::AllOf(HasSubstr(series), testing::Not(HasSubstr(series + "0"))));
  }
}

TEST_F(AccessTest, WorkersAreListedCordonedAndDrained) {
  const auto worker = Fleet("rollout_worker", "w0");
  const auto session = Register(worker, v1::ROLE_ROLLOUT_WORKER, "w0");
  ASSERT_TRUE(session.ok()) << session.status();
  const auto admin = v1::AdminService::NewStub(Api("admin"));
  const auto list = Call(admin, &v1::AdminService::Stub::ListWorkers, v1::ListWorkersRequest());
  ASSERT_TRUE(list.ok()) << list.status();
  ASSERT_EQ(list->workers_size(), 1);
  EXPECT_EQ(list->workers(0).instance_id(), "w0");
  EXPECT_EQ(list->workers(0).slots(), 4);
  v1::CordonWorkerRequest cordon;
  cordon.set_instance_id("w0");
  auto changed = Call(admin, &v1::AdminService::Stub::CordonWorker, cordon);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->state(), v1::CORDONED);
  cordon.set_uncordon(true);
  changed = Call(admin, &v1::AdminService::Stub::CordonWorker, cordon);
  ASSERT_TRUE(changed.ok());
  EXPECT_NE(changed->state(), v1::CORDONED);
  // Also one that is away, and for as long as nobody undoes it.
  cordon.set_instance_id("w1");
  EXPECT_TRUE(absl::IsNotFound(Call(admin, &v1::AdminService::Stub::CordonWorker, cordon).status())) << "to undo what?";
  cordon.set_uncordon(false);
  changed = Call(admin, &v1::AdminService::Stub::CordonWorker, cordon);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->state(), v1::CORDONED);
  EXPECT_LT(changed->seconds_since_heartbeat(), 0) << "it is not there";
  const auto with_away = Call(admin, &v1::AdminService::Stub::ListWorkers, v1::ListWorkersRequest());
  ASSERT_TRUE(with_away.ok()) << with_away.status();
  ASSERT_EQ(with_away->workers_size(), 2);
  EXPECT_EQ(with_away->workers(1).instance_id(), "w1");
  EXPECT_EQ(with_away->workers(1).state(), v1::CORDONED);
  cordon.set_uncordon(true);
  changed = Call(admin, &v1::AdminService::Stub::CordonWorker, cordon);
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->state(), v1::LOST);
  // The fleet is everybody's: an admin of one project changes nothing of it.
  const auto red = CreateToken("ada", "red", {v1::ADMIN});
  ASSERT_TRUE(red.ok()) << red.status();
  const auto of_red = v1::AdminService::NewStub(ApiWithToken(red->secret()));
  v1::DrainWorkerRequest drain_w0;
  cordon.set_instance_id("w0");
  drain_w0.set_instance_id("w0");
  for (const bool uncordon : {false, true}) {
    cordon.set_uncordon(uncordon);
    const absl::Status refused = Call(of_red, &v1::AdminService::Stub::CordonWorker, cordon).status();
    EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
    EXPECT_EQ(ReasonOf(refused), v1::PROJECT_NOT_ALLOWED);
  }
  EXPECT_TRUE(absl::IsPermissionDenied(Call(of_red, &v1::AdminService::Stub::DrainWorker, drain_w0).status()));
  const auto untouched = Call(admin, &v1::AdminService::Stub::ListWorkers, v1::ListWorkersRequest());
  ASSERT_TRUE(untouched.ok()) << untouched.status();
  EXPECT_NE(untouched->workers(0).state(), v1::CORDONED);
  EXPECT_NE(untouched->workers(0).state(), v1::DRAINING);
  cordon.set_instance_id("");
  EXPECT_TRUE(absl::IsInvalidArgument(Call(admin, &v1::AdminService::Stub::CordonWorker, cordon).status()));
  v1::DrainWorkerRequest drain;
  drain.set_instance_id("nobody");
  EXPECT_EQ(Call(admin, &v1::AdminService::Stub::DrainWorker, drain).status().code(), absl::StatusCode::kNotFound);
  drain.set_instance_id("w0");
  ASSERT_TRUE(Call(admin, &v1::AdminService::Stub::DrainWorker, drain).ok());
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_session_id(*session);
  const auto answer = Call(v1::FleetService::NewStub(worker), &v1::FleetService::Stub::Heartbeat, heartbeat);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(answer->drain());
}

TEST_F(AccessTest, ALongPollEndsWhenItsClientGoes) {
  const auto channel = Fleet("rollout_worker", "w0");
  const auto session = Register(channel, v1::ROLE_ROLLOUT_WORKER, "w0");
  ASSERT_TRUE(session.ok()) << session.status();
  const auto stub = v1::FleetService::NewStub(channel);
  v1::LeasePromptsRequest request;
  request.set_session_id(*session);
  request.set_max_samples(4);
  request.set_wait_ms(10'000);
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(i * 2));
    v1::LeasePromptsResponse response;
    EXPECT_EQ(stub->LeasePrompts(&context, request, &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  request.set_wait_ms(0);
  EXPECT_TRUE(Call(stub, &v1::FleetService::Stub::LeasePrompts, request).ok()) << "the server is none the worse for it";
}

TEST_F(AccessTest, AShutdownEndsLongPollsAndStreamsBeforeTheGraceIsOver) {
  const auto credentials = MakeChannelCredentials(certificates_.Issue("rollout_worker", "w0"));
  ASSERT_TRUE(credentials.ok());
  // A channel of its own, without retries.
  const auto channel = grpc::CreateChannel(absl::StrCat("localhost:", server_->ports().at("fleet")), *credentials);
  const auto session = Register(channel, v1::ROLE_ROLLOUT_WORKER, "w0");
  ASSERT_TRUE(session.ok()) << session.status();
  const auto stub = v1::FleetService::NewStub(channel);
  auto poll = std::async(std::launch::async, [&] {
    v1::LeasePromptsRequest request;
    request.set_session_id(*session);
    request.set_max_samples(1);
    request.set_wait_ms(10'000);
    grpc::ClientContext context;
    v1::LeasePromptsResponse response;
    return stub->LeasePrompts(&context, request, &response);
  });
  const auto logs = v1::LogService::NewStub(Api("overseer"));
  grpc::ClientContext context;
  v1::FollowLogsRequest follow;
  follow.set_follow(true);
  const auto reader = logs->FollowLogs(&context, follow);
  reader->WaitForInitialMetadata();
  const absl::Time before = absl::Now();
  server_->Shutdown(absl::Seconds(60));
  EXPECT_LT(absl::Now() - before, absl::Seconds(30));
  EXPECT_EQ(poll.get().error_code(), grpc::StatusCode::UNAVAILABLE);
  v1::LogLine line;
  EXPECT_FALSE(reader->Read(&line));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(AccessTest, LogsGoFromTheFleetToPeople) {
  const auto channel = Fleet("learner", "l0");
  const auto session = Register(channel, v1::ROLE_LEARNER, "l0");
  ASSERT_TRUE(session.ok()) << session.status();
  v1::AppendLogsRequest append;
  append.set_session_id(*session);
  v1::LogLine* line = append.add_lines();
  line->set_level("warn");
  line->set_message("hello");
  ASSERT_TRUE(Call(v1::LogService::NewStub(channel), &v1::LogService::Stub::AppendLogs, append).ok());

  grpc::ClientContext context;
  v1::FollowLogsRequest follow;
  follow.set_follow(true);
  const auto reader = v1::LogService::NewStub(Api("admin"))->FollowLogs(&context, follow);
  v1::LogLine found;
  ASSERT_TRUE(reader->Read(&found));
  EXPECT_EQ(found.message(), "hello");
  EXPECT_EQ(found.role(), "learner");
  EXPECT_EQ(found.instance_id(), "l0");
  append.mutable_lines(0)->set_message("again");
  ASSERT_TRUE(Call(v1::LogService::NewStub(channel), &v1::LogService::Stub::AppendLogs, append).ok());
  ASSERT_TRUE(reader->Read(&found));
  EXPECT_EQ(found.message(), "again");
  context.TryCancel();
  EXPECT_FALSE(reader->Read(&found));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // All projects' lines are for callers of all projects.
  grpc::ClientContext other;
  const auto refused = v1::LogService::NewStub(Api("submitter"))->FollowLogs(&other, follow);
  EXPECT_FALSE(refused->Read(&found));
  EXPECT_EQ(refused->Finish().error_code(), grpc::StatusCode::PERMISSION_DENIED);
}

TEST_F(AccessTest, MetricsAndProbesArePlain) {
  EXPECT_FALSE(ListJobs(Api(""), "").ok());
  ASSERT_TRUE(Register(Fleet("learner", "l0"), v1::ROLE_LEARNER, "l0").ok());
  httplib::Client http("localhost", server_->ports().at("http"));
  const auto ready = http.Get("/readyz");
  ASSERT_TRUE(ready) << "no answer";
  EXPECT_EQ(ready->status, 200);
  auto metrics = http.Get("/metrics");
  // Volumes are looked at off the loop.
  while (metrics && metrics->body.find("rlhf_volume_free_bytes{volume=\"data\"}") == std::string::npos)
    metrics = http.Get("/metrics");
  ASSERT_TRUE(metrics) << "no answer";
  for (const char* series :
       {"rlhf_recovery_seconds", "rlhf_store_commit_seconds_bucket", "rlhf_volume_free_bytes{volume=\"data\"}",
        "rlhf_volume_size_bytes{volume=\"artifacts\"}", "rlhf_auth_failures_total{reason=\"no_token\"} 1",
        "rlhf_workers{role=\"learner\",state=\"ready\"} 1", "rlhf_service_halted 0", "rlhf_leases_active 0",
        "rlhf_gate_oldest_waiting_seconds 0", "rlhf_certificate_expiry_timestamp_seconds{certificate=\"fleet\"}",
        "rlhf_admin_token_expiry_timestamp_seconds 1", "grpc_server_handled_total"}) {
    EXPECT_THAT(metrics->body, HasSubstr(series));
  }
}

TEST_F(AccessTest, AVolumeThatHangsStopsNeitherScrapesNorCalls) {
  httplib::Client http("localhost", server_->ports().at("http"));
  const auto free_bytes = [&] {
    const auto metrics = http.Get("/metrics");
    return metrics ? metrics->body.find("rlhf_volume_free_bytes{volume=\"artifacts\"} ") : std::string::npos;
  };
  while (free_bytes() == std::string::npos) absl::SleepFor(absl::Milliseconds(10));  // looked at since its start
  volumes_hang = true;
  while (hanging_calls == 0) absl::SleepFor(absl::Milliseconds(10));
  const absl::Time began = absl::Now();
  EXPECT_NE(free_bytes(), std::string::npos) << "as it was";
  EXPECT_TRUE(ListJobs(Api("submitter"), "default").ok());
  const auto alive = http.Get("/healthz");
  EXPECT_TRUE(alive && alive->status == 200);
  EXPECT_LT(absl::Now() - began, absl::Seconds(2)) << "a scrape waits that long for the loop";
  volumes_hang = false;
}

TEST_F(AccessTest, ASecondCoordinatorOnTheSameFolderIsRefused) {
  const auto second = CoordinatorServer::Start(Config(), Clock::Real());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use by another coordinator"));
}

}  // namespace
}  // namespace rlhf::coordinator
