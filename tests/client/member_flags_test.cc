// What a member of the fleet is told, and whom it then lets in.
#include "client/cpp/member_flags.h"

#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "client/cpp/weights_stream.h"
#include "common/build_version.h"
#include "common/process.h"
#include "common/status_util.h"
#include "rlhf/v1/weights_service.grpc.pb.h"
#include "tests/testing/certificates.h"

namespace rlhf::client {
namespace {

MemberFlags Parse(const std::string& line) {
  MemberFlags flags;
  CLI::App app;
  AddMemberFlags(&app, "rlhf-member", &flags);
  app.parse(line);
  return flags;
}

TEST(MemberFlagsTest, AFileHasTheSameKeysAndFlagsWin) {
  const ScratchDir dir;
  ASSERT_TRUE(WriteFileDurably(dir.File("member.toml"),
                               "coordinator = \"c:7000\"\ntrust-domain = \"here\"\n"
                               "threads = 4\nlog-json = true\n")
                  .ok());
  const MemberFlags flags = Parse(absl::StrCat("--config ", dir.File("member.toml"), " --instance l0 --threads 2"));
  EXPECT_EQ(flags.coordinator, "c:7000");
  EXPECT_EQ(flags.trust_domain, "here");
  EXPECT_EQ(flags.threads, 2);
  EXPECT_TRUE(flags.log_json);
  ASSERT_TRUE(WriteFileDurably(dir.File("member.toml"), "thread = 4\n").ok());
  EXPECT_THROW(Parse(absl::StrCat("--config ", dir.File("member.toml"), " --coordinator c:7000 --instance l0")),
               CLI::ConfigError);
  EXPECT_THROW(Parse("--coordinator c:7000"), CLI::RequiredError);
}

TEST(MemberFlagsTest, ItRegistersAsWhatItWasTold) {
  const v1::RegisterRequest identity =
      IdentityOf(Parse("--coordinator c:7000 --instance l0 --device cuda:1"), v1::ROLE_LEARNER);
  EXPECT_EQ(identity.role(), v1::ROLE_LEARNER);
  EXPECT_EQ(identity.instance_id(), "l0");
  EXPECT_EQ(identity.device(), "cuda:1");
  EXPECT_EQ(identity.protocol_version(), kProtocolVersion);
  EXPECT_EQ(identity.build_version(), BuildVersion());
}

// One CA may sign for several installations.
TEST(MemberFlagsTest, ACertificateOfAnotherTrustDomainReadsNoWeights) {
  TestCertificates certificates;
  MemberFlags flags = Parse("--coordinator c:7000 --instance l0 --trust-domain test");
  flags.tls = certificates.Issue("learner", "l0");
  v1::WeightsService::Service weights;  // says UNIMPLEMENTED to who gets as far as that
  MetricsRegistry metrics("learner");
  const auto server =
      RpcServer::Start(ListenerOf(flags, "127.0.0.1:0", AuthorizeWeights(flags.trust_domain), &weights, &metrics));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto ask = [&](const TlsFiles& tls) {
    ChannelOptions options;
    options.address = absl::StrCat("127.0.0.1:", (*server)->port());
    options.tls = tls;
    const auto channel = MakeChannel(options);
    EXPECT_TRUE(channel.ok()) << channel.status();
    v1::WeightsManifest manifest;
    const auto context = MakeContext(absl::Seconds(20));
    return FromGrpc(v1::WeightsService::NewStub(*channel)->GetManifest(context.get(), {}, &manifest)).code();
  };
  EXPECT_EQ(ask(certificates.Issue("rollout_worker", "r0")), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(ask(certificates.IssueOf("elsewhere", "rollout_worker", "r0")), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(ask(certificates.Issue("coordinator", "c0")), absl::StatusCode::kPermissionDenied);
  (*server)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace rlhf::client
