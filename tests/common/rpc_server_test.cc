#include "common/rpc_server.h"

#include <thread>

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace rlhf {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr absl::Duration kTimeout = absl::Seconds(10);

// Answers with what CallerOf says of the caller.
class WhoAmI final : public v1::JobService::CallbackService {
 public:
  grpc::ServerUnaryReactor* GetJob(grpc::CallbackServerContext* context, const v1::GetJobRequest* request,
                                   v1::Job* job) override {
    const Caller caller = CallerOf(*context);
    job->set_submitted_by(caller.subject);
    job->set_stage(caller.role);
    job->set_reason(absl::StrJoin(caller.roles, ","));
    job->set_parent_id(caller.project);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(WithReason(absl::OkStatus(), v1::ERROR_REASON_UNSPECIFIED)));
    return reactor;
  }
  grpc::ServerUnaryReactor* CancelJob(grpc::CallbackServerContext* context, const v1::CancelJobRequest* request,
                                      v1::Job* job) override {
    auto* reactor = context->DefaultReactor();
    if (request->reason() == "halted") {
      reactor->Finish(ToGrpc(WithReason(absl::UnavailableError("training is halted"), v1::SERVICE_HALTED)));
      return reactor;
    }
    reactor->Finish(
        ToGrpc(WithReason(absl::NotFoundError(absl::StrCat("no such job", request->reason())), v1::UNKNOWN_JOB)));
    return reactor;
  }
};

// Knows two tokens and any fleet certificate; remembers the methods it saw.
class TestAuthorizer {
 public:
  Authorizer AsFunction() {
    return [this](const std::string& method, const std::string& token,
                  const std::string& spiffe_id) -> absl::StatusOr<Caller> {
      absl::MutexLock lock(&mu_);
      methods_.insert(method);
      if (token == "ann-secret" || token == "bob-secret") {
        Caller caller;
        caller.subject = token.substr(0, 3);
        caller.roles = {"viewer", "submitter"};
        caller.project = "default";
        return caller;
      }
      if (!token.empty()) {
        return WithReason(absl::UnauthenticatedError("the token is not known"), v1::UNAUTHENTICATED_CALLER);
      }
      RLHF_ASSIGN_OR_RETURN(const FleetIdentity id, ParseSpiffeId(spiffe_id));
      if (id.role == "reward_server") return absl::PermissionDeniedError("not for reward servers");
      Caller caller;
      caller.subject = id.instance;
      caller.role = id.role;
      return caller;
    };
  }
  std::set<std::string> methods() {
    absl::MutexLock lock(&mu_);
    return methods_;
  }

 private:
  absl::Mutex mu_;
  std::set<std::string> methods_ ABSL_GUARDED_BY(mu_);
};

class RpcServerTest : public testing::Test {
 protected:
  std::unique_ptr<RpcServer> StartServer(const TlsFiles& tls, bool mutual, const std::string& address = "127.0.0.1:0") {
    RpcServerOptions options;
    options.address = address;
    options.tls = tls;
    options.require_client_certificate = mutual;
    options.authorizer = authorizer_.AsFunction();
    options.services = {&service_};
    options.metrics = &metrics_;
    auto server = RpcServer::Start(options);
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? *std::move(server) : nullptr;
  }
  static std::shared_ptr<grpc::Channel> Connect(const RpcServer& server, const TlsFiles& tls,
                                                const std::string& token = "", const std::string& host = "127.0.0.1") {
    client::ChannelOptions options;
    options.address = absl::StrCat(host, ":", server.port());
    options.tls = tls;
    options.bearer_token = token;
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.ok() ? *channel : nullptr;
  }
  static absl::StatusOr<v1::Job> Ask(const std::shared_ptr<grpc::Channel>& channel) {
    const auto context = client::MakeContext(kTimeout);
    v1::Job job;
    const absl::Status status = FromGrpc(v1::JobService::NewStub(channel)->GetJob(context.get(), {}, &job));
    if (!status.ok()) return status;
    return job;
  }

  TestCertificates certificates_;
  TestAuthorizer authorizer_;
  MetricsRegistry metrics_{"test"};
  WhoAmI service_;
};

TEST_F(RpcServerTest, MutualTlsGivesTheFleetIdentity) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/true);
  ASSERT_NE(server, nullptr);
  const auto job = Ask(Connect(*server, certificates_.Issue("learner", "learner-1")));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->submitted_by(), "learner-1");
  EXPECT_EQ(job->stage(), "learner");
  EXPECT_THAT(authorizer_.methods(), ElementsAre("/rlhf.v1.JobService/GetJob"));

  const auto refused = Ask(Connect(*server, certificates_.Issue("reward_server", "r")));
  EXPECT_TRUE(absl::IsPermissionDenied(refused.status())) << refused.status();
}

TEST_F(RpcServerTest, MutualTlsRefusesNoCertificateAndAnotherCa) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/true);
  ASSERT_NE(server, nullptr);
  EXPECT_TRUE(absl::IsUnavailable(Ask(Connect(*server, certificates_.CaOnly())).status()));

  TestCertificates strangers("test");
  TlsFiles forged = strangers.Issue("learner", "learner-1");
  forged.ca_file = certificates_.CaOnly().ca_file;  // trusts us, but is not trusted
  EXPECT_TRUE(absl::IsUnavailable(Ask(Connect(*server, forged)).status()));
  // And the client trusts only its own CA.
  TlsFiles distrusting = certificates_.Issue("learner", "learner-1");
  distrusting.ca_file = strangers.CaOnly().ca_file;
  EXPECT_TRUE(absl::IsUnavailable(Ask(Connect(*server, distrusting)).status()));
  EXPECT_TRUE(authorizer_.methods().empty());
}

TEST_F(RpcServerTest, TheServersNameIsChecked) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  EXPECT_TRUE(Ask(Connect(*server, certificates_.CaOnly(), "ann-secret", "localhost")).ok());
  // 127.0.0.2 is this host too, but the certificate is not for it.
  EXPECT_TRUE(absl::IsUnavailable(Ask(Connect(*server, certificates_.CaOnly(), "ann-secret", "127.0.0.2")).status()));
}

TEST_F(RpcServerTest, BearerTokens) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  const auto job = Ask(Connect(*server, certificates_.CaOnly(), "ann-secret"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->submitted_by(), "ann");
  EXPECT_EQ(job->reason(), "viewer,submitter");
  EXPECT_EQ(job->parent_id(), "default");

  const auto unknown = Ask(Connect(*server, certificates_.CaOnly(), "wrong"));
  EXPECT_TRUE(absl::IsUnauthenticated(unknown.status()));
  EXPECT_EQ(ReasonOf(unknown.status()), v1::ERROR_REASON_UNSPECIFIED)
      << "details do not travel with refusals in gRPC 1.51";
  EXPECT_FALSE(Ask(Connect(*server, certificates_.CaOnly())).ok());
}

// Callers of one connection must not see each other's identity.
TEST_F(RpcServerTest, TwoTokensOnOneConnection) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  const auto channel = Connect(*server, certificates_.CaOnly());
  const auto ask_as = [&channel](const std::string& name) {
    const auto context = client::MakeContext(kTimeout);
    context->AddMetadata("authorization", absl::StrCat("bearer ", name, "-secret"));
    v1::Job job;
    const grpc::Status status = v1::JobService::NewStub(channel)->GetJob(context.get(), {}, &job);
    return status.ok() ? job.submitted_by() : status.error_message();
  };
  std::vector<std::thread> threads;
  for (const std::string name : {"ann", "bob", "ann", "bob"}) {
    threads.emplace_back([&ask_as, name] {
      for (int i = 0; i < 50; ++i) EXPECT_EQ(ask_as(name), name);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(RpcServerTest, PlaintextMakesEveryoneTheInsecureCaller) {
  const auto server = StartServer({.insecure = true}, /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  const auto job = Ask(Connect(*server, {.insecure = true}, "a token on loopback"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->submitted_by(), "insecure");
  EXPECT_EQ(job->reason(), "viewer,submitter,rater,overseer,admin");
  EXPECT_EQ(job->parent_id(), "*");
  EXPECT_TRUE(authorizer_.methods().empty());
}

TEST_F(RpcServerTest, ATokenNeverLeavesTheHostInPlaintext) {
  client::ChannelOptions options;
  options.address = "example.com:7000";
  options.tls.insecure = true;
  options.bearer_token = "ann-secret";
  const absl::Status status = client::MakeChannel(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("ann-secret")));
}

TEST_F(RpcServerTest, ReasonsTravelAndCallsAreCounted) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  const auto channel = Connect(*server, certificates_.CaOnly(), "ann-secret");
  ASSERT_TRUE(Ask(channel).ok());
  const auto context = client::MakeContext(kTimeout);
  v1::Job job;
  const absl::Status missing = FromGrpc(v1::JobService::NewStub(channel)->CancelJob(context.get(), {}, &job));
  EXPECT_TRUE(absl::IsNotFound(missing));
  EXPECT_EQ(ReasonOf(missing), v1::UNKNOWN_JOB);
  EXPECT_FALSE(Ask(Connect(*server, certificates_.CaOnly(), "wrong")).ok());
  // A call is counted when its context is destroyed, which may be after its answer: stopping the server waits for it.
  server->Shutdown(absl::Seconds(5));
  const std::string text = metrics_.Text();
  const auto line = [](const std::string& code, const std::string& method) {
    return absl::StrCat("grpc_server_handled_total{grpc_code=\"", code, "\",grpc_method=\"", method,
                        "\",grpc_service=\"rlhf.v1.JobService\"} 1\n");
  };
  EXPECT_THAT(text, HasSubstr(line("OK", "GetJob")));
  EXPECT_THAT(text, HasSubstr(line("NOT_FOUND", "CancelJob")));
  EXPECT_THAT(text, HasSubstr(line("UNAUTHENTICATED", "GetJob")));
  EXPECT_THAT(text, HasSubstr("grpc_server_handling_seconds_count{grpc_method=\"GetJob\""));
}

// They go on for as long as an overseer wants, and GrpcErrors is no alert about overseers.
TEST_F(RpcServerTest, CallsThatAHaltRefusesAreNotCounted) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  const auto stub = v1::JobService::NewStub(Connect(*server, certificates_.CaOnly(), "ann-secret"));
  for (const char* reason : {"halted", "other"}) {
    v1::CancelJobRequest request;
    request.set_reason(reason);
    v1::Job job;
    const auto context = client::MakeContext(kTimeout);
    const absl::Status status = FromGrpc(stub->CancelJob(context.get(), request, &job));
    EXPECT_EQ(ReasonOf(status), reason == std::string("halted") ? v1::SERVICE_HALTED : v1::UNKNOWN_JOB) << status;
  }
  server->Shutdown(absl::Seconds(5));
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, Not(HasSubstr("grpc_code=\"UNAVAILABLE\"")));
  EXPECT_THAT(text, HasSubstr("grpc_server_handling_seconds_count{grpc_method=\"CancelJob\","
                              "grpc_service=\"rlhf.v1.JobService\"} 1\n"));
}

// 8 KiB of headers is what a peer takes: past it, it would make an error of its own out of any.
TEST_F(RpcServerTest, ALongMessageArrivesCutWithItsCodeAndReason) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  for (const char* piece : {"model.layers.0.self_attn.q_proj.weight, ", "\u00e9\u4e2d%\n"}) {
    v1::CancelJobRequest request;
    while (request.reason().size() < 100'000) request.mutable_reason()->append(piece);
    const auto context = client::MakeContext(kTimeout);
    v1::Job job;
    const auto channel = Connect(*server, certificates_.CaOnly(), "ann-secret");
    const absl::Status missing = FromGrpc(v1::JobService::NewStub(channel)->CancelJob(context.get(), request, &job));
    EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
    EXPECT_EQ(ReasonOf(missing), v1::UNKNOWN_JOB);
    EXPECT_THAT(std::string(missing.message()),
                testing::AllOf(HasSubstr(absl::StrCat("no such job", piece)), HasSubstr("bytes more)")));
  }
}

TEST_F(RpcServerTest, CallersCannotInventSeries) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  grpc::GenericStub stub(Connect(*server, certificates_.CaOnly(), "wrong"));
  for (const char* method : {"/made.up/One", "/made.up/Two", "/rlhf.v1.JobService/MadeUp"}) {
    const auto context = client::MakeContext(kTimeout);
    grpc::CompletionQueue queue;
    grpc::ByteBuffer answer;
    grpc::Status status;
    const auto call = stub.PrepareUnaryCall(context.get(), method, grpc::ByteBuffer(), &queue);
    call->StartCall();
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  const std::string text = metrics_.Text();
  EXPECT_THAT(text, HasSubstr("grpc_method=\"unknown\",grpc_service=\"unknown\"} 3\n"));
  EXPECT_THAT(text, Not(HasSubstr("made.up")));
  EXPECT_THAT(text, Not(HasSubstr("MadeUp")));
}

TEST_F(RpcServerTest, HealthAndReflectionPassTheAuthorizer) {
  const auto server = StartServer(certificates_.Issue("coordinator", "main"), /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  grpc::GenericStub stub(Connect(*server, certificates_.CaOnly(), "ann-secret"));
  const auto check = [&stub] {
    const auto context = client::MakeContext(kTimeout);
    grpc::CompletionQueue queue;
    const grpc::Slice nothing;
    const grpc::ByteBuffer empty(&nothing, 1);
    grpc::ByteBuffer answer;
    grpc::Status status;
    const auto call = stub.PrepareUnaryCall(context.get(), "/grpc.health.v1.Health/Check", empty, &queue);
    call->StartCall();
    call->Finish(&answer, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_TRUE(status.ok()) << status.error_message();
    std::vector<grpc::Slice> slices;
    EXPECT_TRUE(answer.Dump(&slices).ok());
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return bytes;
  };
  EXPECT_EQ(check(), std::string("\x08\x01", 2));  // HealthCheckResponse{status: SERVING}
  server->SetServing(false);
  EXPECT_EQ(check(), std::string("\x08\x02", 2));
  EXPECT_THAT(authorizer_.methods(), testing::Contains("/grpc.health.v1.Health/Check"));

  const auto context = client::MakeContext(kTimeout);
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareCall(context.get(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  ASSERT_TRUE(ok);
  const grpc::Slice list_services("\x3a\x01*", 3);  // ServerReflectionRequest{list_services: "*"}
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  queue.Next(&tag, &ok);
  ASSERT_TRUE(ok);
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  queue.Next(&tag, &ok);
  ASSERT_TRUE(ok);
  grpc::Slice slice;
  ASSERT_TRUE(answer.DumpToSingleSlice(&slice).ok());
  EXPECT_THAT(std::string(reinterpret_cast<const char*>(slice.begin()), slice.size()), HasSubstr("rlhf.v1.JobService"));
  call->WritesDone(nullptr);
  queue.Next(&tag, &ok);
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
}

TEST_F(RpcServerTest, StartErrors) {
  const auto server = StartServer({.insecure = true}, /*mutual=*/false);
  ASSERT_NE(server, nullptr);
  RpcServerOptions options;
  options.address = absl::StrCat("127.0.0.1:", server->port());
  options.tls.insecure = true;
  const absl::Status taken = RpcServer::Start(options).status();
  EXPECT_TRUE(absl::IsUnavailable(taken)) << taken;
  EXPECT_THAT(std::string(taken.message()), HasSubstr(options.address));

  options.address = "127.0.0.1:0";
  options.tls = certificates_.Issue("coordinator", "main");
  EXPECT_THAT(std::string(RpcServer::Start(options).status().message()), HasSubstr("without an authorizer"));
  options.tls = {};
  EXPECT_TRUE(absl::IsInvalidArgument(RpcServer::Start(options).status()));
}

}  // namespace
}  // namespace rlhf
