// Streams that are open when their caller's token ends.
#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

class StreamsTest : public CollectFixture {
 protected:
  v1::CreateTokenResponse Token(const std::string& subject, int64_t ttl_seconds = 0) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project("*");
    request.add_roles(v1::VIEWER);
    request.set_ttl_seconds(ttl_seconds);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.value_or(v1::CreateTokenResponse());
  }
  // A stream of all logs, as long as they come.
  struct Followed {
    std::unique_ptr<v1::LogService::Stub> stub;
    std::unique_ptr<grpc::ClientContext> context = client::MakeContext(absl::Seconds(60));
    std::unique_ptr<grpc::ClientReader<v1::LogLine>> reader;
  };
  Followed Follow(const std::string& token) {
    Followed out;
    out.stub = v1::LogService::NewStub(ApiWithToken(token));
    v1::FollowLogsRequest follow;
    follow.set_follow(true);
    out.reader = out.stub->FollowLogs(out.context.get(), follow);
    out.reader->WaitForInitialMetadata();
    return out;
  }
  void Log(const std::string& message) {
    const auto channel = Fleet("learner", "l0");
    v1::RegisterRequest request;
    request.set_role(v1::ROLE_LEARNER);
    request.set_instance_id("l0");
    request.set_protocol_version(1);
    const auto session = Call(v1::FleetService::NewStub(channel), &v1::FleetService::Stub::Register, request);
    ASSERT_TRUE(session.ok()) << session.status();
    v1::AppendLogsRequest append;
    append.set_session_id(session->session_id());
    v1::LogLine* line = append.add_lines();
    line->set_level("info");
    line->set_message(message);
    ASSERT_TRUE(Call(v1::LogService::NewStub(channel), &v1::LogService::Stub::AppendLogs, append).ok());
  }
};

TEST_F(StreamsTest, ARevokedTokenEndsItsOwnStreamsOnly) {
  UploadSamples();
  v1::JobSpec spec;
  spec.set_name("collect");
  spec.mutable_collect()->set_samples("samples");
  spec.mutable_collect()->set_comparisons(10);
  const std::string job = Submit(spec);
  const v1::CreateTokenResponse ada = Token("ada"), bob = Token("bob");
  const Followed adas = Follow(ada.secret()), bobs = Follow(bob.secret());
  const auto jobs = v1::JobService::NewStub(ApiWithToken(ada.secret()));
  v1::WatchJobRequest watch;
  watch.set_job_id(job);
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto watched = jobs->WatchJob(context.get(), watch);
  watched->WaitForInitialMetadata();

  v1::RevokeTokenRequest revoke;
  revoke.set_id(ada.token().id());
  ASSERT_TRUE(Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::RevokeToken, revoke).ok());
  v1::JobEvent event;
  while (watched->Read(&event)) continue;
  const absl::Status job_ended = FromGrpc(watched->Finish());
  EXPECT_EQ(job_ended.code(), absl::StatusCode::kUnauthenticated) << job_ended;
  EXPECT_EQ(ReasonOf(job_ended), v1::UNAUTHENTICATED_CALLER);
  v1::LogLine line;
  while (adas.reader->Read(&line)) continue;
  EXPECT_EQ(adas.reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);

  Log("for bob");
  while (bobs.reader->Read(&line) && line.message() != "for bob") continue;
  EXPECT_EQ(line.message(), "for bob");
  bobs.context->TryCancel();
  (void)bobs.reader->Finish();
}

TEST_F(StreamsTest, ATokenThatExpiresEndsItsStreams) {
  const Followed followed = Follow(Token("ada", /*ttl_seconds=*/3).secret());
  v1::LogLine line;
  while (followed.reader->Read(&line)) continue;
  EXPECT_EQ(followed.reader->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

}  // namespace
}  // namespace rlhf::coordinator
