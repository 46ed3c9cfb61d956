// What a listener of the fleet refuses, and that it goes on serving others: certificates that have ended or are of
// another role, garbage, floods; that refused handshakes are counted by reason; and that certificates are read again
// without a restart.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/fleet_names.h"
#include "common/grpc_log.h"
#include "common/log.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace rlhf {
namespace {

// Register answers at once; LeasePrompts only when its caller gives up.
class Service final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest*,
                                     v1::RegisterResponse* response) override {
    response->set_session_id(CallerOf(*context).subject);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
  grpc::ServerUnaryReactor* LeasePrompts(grpc::CallbackServerContext*, const v1::LeasePromptsRequest*,
                                         v1::LeasePromptsResponse*) override {
    class Waiting final : public grpc::ServerUnaryReactor {
     public:
      void OnCancel() override { Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }
    };
    ++waiting;
    return new Waiting;
  }
  std::atomic<int> waiting{0};
};

class FleetTlsTest : public testing::Test {
 protected:
  void Start(int streams = 1000) {
    RpcServerOptions options;
    options.address = "127.0.0.1:0";
    options.tls = certificates_.Issue("reward_server", "reward-0");
    options.require_client_certificate = true;
    options.max_concurrent_streams = streams;
    options.authorizer = [](const std::string&, const std::string&,
                            const std::string& spiffe_id) -> absl::StatusOr<Caller> {
      RLHF_ASSIGN_OR_RETURN(const FleetIdentity identity, ParseSpiffeId(spiffe_id));
      Caller caller;
      caller.subject = identity.instance;
      return caller;
    };
    options.services = {&service_};
    options.metrics = &metrics_;
    options.handshake_refused = [this](const std::string& reason) {
      absl::MutexLock lock(&mu_);
      ++told_[reason];
    };
    auto server = RpcServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::shared_ptr<grpc::Channel> Channel(const TlsFiles& tls, const std::string& server_name = "") {
    client::ChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", server_->port());
    options.tls = tls;
    options.server_name = server_name;
    auto channel = client::MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    return *channel;
  }
  static absl::StatusOr<std::string> Register(const std::shared_ptr<grpc::Channel>& channel) {
    v1::RegisterResponse response;
    const auto context = client::MakeContext(absl::Seconds(5));
    RLHF_RETURN_IF_ERROR(FromGrpc(v1::FleetService::NewStub(channel)->Register(context.get(), {}, &response)));
    return response.session_id();
  }
  static void Write(const std::string& path, const std::string& content) {
    ASSERT_TRUE(WriteFileDurably(path, content).ok());
  }
  double Counted(HandshakeRefusal refusal) {
    return metrics_.Counter("rlhf_auth_failures_total", "", {{"reason", HandshakeReason(refusal)}}).Value();
  }
  // That what was refused so far was refused for this reason and no other. A client may know before the server has
  // counted.
  void ExpectRefusedOnlyFor(HandshakeRefusal refusal) {
    for (const absl::Time deadline = absl::Now() + absl::Seconds(20); Counted(refusal) == 0 && absl::Now() < deadline;)
      absl::SleepFor(absl::Milliseconds(10));
    for (const HandshakeRefusal each : kHandshakeRefusals) {
      const std::string reason = HandshakeReason(each);
      if (each == refusal) {
        EXPECT_GE(Counted(each), 1) << reason;
      } else {
        EXPECT_EQ(Counted(each), 0) << reason;
      }
    }
    server_->Shutdown(absl::ZeroDuration());  // nothing is told after it
    absl::MutexLock lock(&mu_);
    EXPECT_EQ(told_.size(), 1u);
    EXPECT_EQ(told_[HandshakeReason(refusal)], Counted(refusal));
  }

  TestCertificates certificates_;
  Service service_;
  MetricsRegistry metrics_{"reward_server"};
  absl::Mutex mu_;
  std::map<std::string, int> told_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<RpcServer> server_;
};

TEST_F(FleetTlsTest, AnEndedCertificateIsRefusedAndCounted) {
  Start();
  EXPECT_TRUE(Register(Channel(certificates_.Issue("coordinator", "c0"))).ok());
  const auto ended = IssueCertificate(certificates_.ca(), "test", "coordinator", "c1", {}, /*days=*/-1);
  ASSERT_TRUE(ended.ok());
  TlsFiles files = certificates_.CaOnly();
  files.cert_file = certificates_.dir().File("ended.pem");
  files.key_file = certificates_.dir().File("ended.key");
  Write(files.cert_file, ended->cert_pem);
  Write(files.key_file, ended->key_pem);
  EXPECT_EQ(Register(Channel(files)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Register(Channel(certificates_.Issue("coordinator", "c0"))).ok());
  ExpectRefusedOnlyFor(HandshakeRefusal::kExpired);
}

TEST_F(FleetTlsTest, ACertificateOfAnotherCaIsRefusedAndCounted) {
  Start();
  TestCertificates others;
  TlsFiles files = others.Issue("coordinator", "c0");
  files.ca_file = certificates_.CaOnly().ca_file;
  EXPECT_EQ(Register(Channel(files)).status().code(), absl::StatusCode::kUnavailable);
  ExpectRefusedOnlyFor(HandshakeRefusal::kUntrusted);
}

TEST_F(FleetTlsTest, NoCertificateIsRefusedCountedAndLogged) {
  InitLogging("reward_server", "reward-0", "info", /*json=*/true);
  absl::Mutex mu;
  std::vector<LogRecord> lines;
  const auto logged = [&] {
    absl::MutexLock lock(&mu);
    return !lines.empty();
  };
  const int64_t observer = AddLogObserver([&](const LogRecord& line) {
    absl::MutexLock lock(&mu);
    if (absl::StrContains(line.message, "gRPC: Handshake failed")) lines.push_back(line);
  });
  Start();
  // Of failed handshakes one line a second is written, and this second's may have been another test's.
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  do {
    EXPECT_EQ(Register(Channel(certificates_.CaOnly())).status().code(), absl::StatusCode::kUnavailable);
  } while (!logged() && absl::Now() < deadline);
  ExpectRefusedOnlyFor(HandshakeRefusal::kNoCertificate);
  RemoveLogObserver(observer);
  absl::MutexLock lock(&mu);
  ASSERT_FALSE(lines.empty());
  EXPECT_EQ(lines[0].level, "error");
}

// The client ends the handshake: the server has refused nobody, and what the client found is not counted as its doing.
TEST_F(FleetTlsTest, AServerThatItsClientDoesNotTrustHasRefusedNobody) {
  Start();
  TestCertificates others;
  TlsFiles files = certificates_.Issue("coordinator", "c0");
  files.ca_file = others.CaOnly().ca_file;
  EXPECT_EQ(Register(Channel(files)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Register(Channel(certificates_.CaOnly())).status().code(), absl::StatusCode::kUnavailable);
  ExpectRefusedOnlyFor(HandshakeRefusal::kNoCertificate);
}

TEST_F(FleetTlsTest, AServerIsKnownByItsRole) {
  Start();
  const TlsFiles coordinator = certificates_.Issue("coordinator", "c0");
  EXPECT_TRUE(Register(Channel(coordinator, FleetServerName("reward_server"))).ok());
  EXPECT_TRUE(Register(Channel(coordinator, FleetServerName(""))).ok());
  EXPECT_EQ(Register(Channel(coordinator, FleetServerName("learner"))).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(FleetTlsTest, ANewCertificateIsReadWithoutARestart) {
  Start();
  const TlsFiles client = certificates_.Issue("coordinator", "c0");
  const std::string name = "renewed.example";
  EXPECT_FALSE(Register(Channel(client, name)).ok());
  certificates_.Issue("reward_server", "reward-0", {name});  // over the same files
  const absl::Time deadline = absl::Now() + absl::Seconds(40);
  while (!Register(Channel(client, name)).ok()) {
    ASSERT_LT(absl::Now(), deadline) << "the new certificate was not taken";
    absl::SleepFor(absl::Milliseconds(200));  // the files are looked at every 10 s; there is nothing else to wait on
  }
}

// How a CA is replaced without a moment in which somebody is refused: two of the same name are trusted for a while.
TEST_F(FleetTlsTest, ASecondCaInTheFileIsTrustedWithoutARestart) {
  TestCertificates next("test");
  Start();
  const TlsFiles before = certificates_.Issue("coordinator", "c0");
  TlsFiles after = next.Issue("coordinator", "c0");
  Write(after.ca_file, next.ca().cert_pem + certificates_.ca().cert_pem);
  EXPECT_FALSE(Register(Channel(after)).ok());
  Write(before.ca_file, certificates_.ca().cert_pem + next.ca().cert_pem);
  const absl::Time deadline = absl::Now() + absl::Seconds(40);
  while (!Register(Channel(after)).ok()) {
    ASSERT_LT(absl::Now(), deadline) << "the new CA was not taken";
    absl::SleepFor(absl::Milliseconds(200));  // the files are looked at every 10 s; there is nothing else to wait on
  }
  EXPECT_TRUE(Register(Channel(before)).ok());
}

TEST_F(FleetTlsTest, GarbageIsDroppedAndOthersAreServed) {
  Start();
  for (int i = 0; i < 20; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const std::string garbage(4096, static_cast<char>(0x5A + i));
    EXPECT_GT(send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL), 0);
    close(fd);
  }
  EXPECT_TRUE(Register(Channel(certificates_.Issue("coordinator", "c0"))).ok());
}

TEST_F(FleetTlsTest, AFloodOfStreamsIsHeldAndOthersAreServed) {
  constexpr int kStreams = 50, kCalls = 2000;
  Start(kStreams);
  const auto flooding = v1::FleetService::NewStub(Channel(certificates_.Issue("rollout_worker", "flood")));
  struct Call {
    std::unique_ptr<grpc::ClientContext> context = client::MakeContext(absl::Seconds(60));
    v1::LeasePromptsRequest request;
    v1::LeasePromptsResponse response;
  };
  std::vector<Call> calls(kCalls);
  absl::BlockingCounter ended(kCalls);
  for (Call& call : calls) {
    flooding->async()->LeasePrompts(call.context.get(), &call.request, &call.response,
                                    [&ended](grpc::Status) { ended.DecrementCount(); });
  }
  const auto other = Channel(certificates_.Issue("rollout_worker", "other"));
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(Register(other).ok());
  EXPECT_LE(service_.waiting, kStreams) << "one connection holds no more than its streams";
  for (Call& call : calls) call.context->TryCancel();
  ended.Wait();
}

}  // namespace
}  // namespace rlhf
