// Streams that are open when their caller's token ends; work that is left when the coordinator ends.
#include <fcntl.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "artifact/digest.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "tests/coordinator/collect_fixture.h"

namespace rlhf::coordinator {
namespace {

class StreamsTest : public CollectFixture {
 protected:
  v1::CreateTokenResponse Token(const std::string& subject, int64_t ttl_seconds = 0, v1::TokenRole role = v1::VIEWER) {
    v1::CreateTokenRequest request;
    request.set_subject(subject);
    request.set_project("*");
    request.add_roles(role);
    request.set_ttl_seconds(ttl_seconds);
    const auto made = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, request);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.value_or(v1::CreateTokenResponse());
  }
  void Revoke(const v1::CreateTokenResponse& token) {
    v1::RevokeTokenRequest revoke;
    revoke.set_id(token.token().id());
    ASSERT_TRUE(Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::RevokeToken, revoke).ok());
  }
  static void ExpectUnauthenticated(const grpc::Status& grpc_status) {
    const absl::Status status = FromGrpc(grpc_status);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
    EXPECT_EQ(ReasonOf(status), v1::UNAUTHENTICATED_CALLER) << status;
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
  const std::string job = Submit(CollectJob());
  const v1::CreateTokenResponse ada = Token("ada"), bob = Token("bob");
  const Followed adas = Follow(ada.secret()), bobs = Follow(bob.secret());
  const auto jobs = v1::JobService::NewStub(ApiWithToken(ada.secret()));
  v1::WatchJobRequest watch;
  watch.set_job_id(job);
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto watched = jobs->WatchJob(context.get(), watch);
  watched->WaitForInitialMetadata();

  Revoke(ada);
  v1::JobEvent event;
  while (watched->Read(&event)) continue;
  ExpectUnauthenticated(watched->Finish());
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

v1::StartUploadRequest UploadOf(uint64_t size, const std::string& sha256) {
  v1::StartUploadRequest start;
  start.set_project("default");
  start.set_kind("data");
  v1::FileEntry* file = start.add_files();
  file->set_path("a");
  file->set_size(size);
  file->set_sha256(sha256);
  return start;
}

TEST_F(StreamsTest, AnUploadEndsWithItsTokenAlsoWhileNothingComes) {
  const v1::CreateTokenResponse ada = Token("ada", 0, v1::SUBMITTER);
  const auto stub = v1::ArtifactService::NewStub(ApiWithToken(ada.secret()));
  const std::string content = "0123456789";
  const v1::StartUploadRequest start = UploadOf(content.size(), artifact::Sha256Hex(content));
  const auto started = Call(stub, &v1::ArtifactService::Stub::StartUpload, start);
  ASSERT_TRUE(started.ok()) << started.status();
  v1::UploadChunksResponse response;
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto writer = stub->UploadChunks(context.get(), &response);
  v1::UploadChunk chunk;
  chunk.set_upload_id(started->upload_id());
  chunk.set_data(content.substr(0, 5));
  ASSERT_TRUE(writer->Write(chunk));
  Revoke(ada);
  ExpectUnauthenticated(writer->Finish());

  // What had arrived stays, for whoever goes on with it.
  const auto resumed =
      Call(v1::ArtifactService::NewStub(Api("submitter")), &v1::ArtifactService::Stub::StartUpload, start);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_LE(resumed->offsets(0), 5u);
}

TEST_F(StreamsTest, AnUploadThatGoesOnEndsWithItsToken) {
  const v1::CreateTokenResponse ada = Token("ada", 0, v1::SUBMITTER);
  const auto stub = v1::ArtifactService::NewStub(ApiWithToken(ada.secret()));
  const v1::StartUploadRequest start = UploadOf(1 << 30, std::string(64, '0'));
  const auto started = Call(stub, &v1::ArtifactService::Stub::StartUpload, start);
  ASSERT_TRUE(started.ok()) << started.status();
  v1::UploadChunksResponse response;
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto writer = stub->UploadChunks(context.get(), &response);
  v1::UploadChunk chunk;
  chunk.set_upload_id(started->upload_id());
  chunk.set_data("x");
  // A byte at a time, so that it never waits for long: its next piece is refused.
  ASSERT_TRUE(writer->Write(chunk));
  Revoke(ada);
  uint64_t sent = 1;
  do {
    chunk.set_offset(sent++);
  } while (sent < (1u << 22) && writer->Write(chunk));
  ExpectUnauthenticated(writer->Finish());
}

TEST_F(StreamsTest, ADownloadEndsWithItsToken) {
  const std::string path = dir_.File("large");
  constexpr size_t kBytes = 48 << 20;  // more than is on its way to a client that does not read
  ASSERT_TRUE(WriteFileDurably(path, std::string(kBytes, 'x')).ok());
  const auto uploaded = client::UploadArtifact(Api("submitter"), path, "data", "default", "large");
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  const v1::CreateTokenResponse ada = Token("ada");
  const auto stub = v1::ArtifactService::NewStub(ApiWithToken(ada.secret()));
  v1::DownloadRequest request;
  request.set_digest(uploaded->digest());
  request.set_path(uploaded->files(0).path());
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto reader = stub->Download(context.get(), request);
  v1::DownloadChunk chunk;
  ASSERT_TRUE(reader->Read(&chunk));
  size_t got = chunk.data().size();
  Revoke(ada);
  while (reader->Read(&chunk)) got += chunk.data().size();
  ExpectUnauthenticated(reader->Finish());
  EXPECT_LT(got, kBytes);
}

TEST_F(StreamsTest, AnImportEndsWithItsTokenAndNothingOfItCounts) {
  const v1::CreateTokenResponse ada = Token("ada", 0, v1::SUBMITTER);
  const auto import = [](v1::FeedbackService::Stub& stub, bool ends, const std::function<void()>& meanwhile) {
    v1::ImportComparisonsResponse response;
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto writer = stub.ImportComparisons(context.get(), &response);
    v1::ImportComparisonsRequest request;
    request.set_project("default");
    request.set_set("taste");
    v1::Comparison* comparison = request.add_comparisons();
    comparison->mutable_prompt()->set_text("Q");
    comparison->mutable_first()->set_text("good");
    comparison->mutable_second()->set_text("bad");
    comparison->set_preference(v1::FIRST);
    EXPECT_TRUE(writer->Write(request));
    meanwhile();
    if (ends) writer->WritesDone();
    return writer->Finish();
  };
  const auto stub = v1::FeedbackService::NewStub(ApiWithToken(ada.secret()));
  ExpectUnauthenticated(import(*stub, /*ends=*/false, [&] { Revoke(ada); }));
  const auto others = v1::FeedbackService::NewStub(Api("submitter"));
  const auto sets = Call(others, &FeedbackStub::ListSets, v1::ListSetsRequest());
  ASSERT_TRUE(sets.ok()) << sets.status();
  EXPECT_EQ(sets->sets_size(), 0);
  // The set is free for the next import.
  const absl::Status next = FromGrpc(import(*others, /*ends=*/true, [] {}));
  EXPECT_TRUE(next.ok()) << next;
}

// Calls that were given up leave work behind that names their service. A pipe in the place of each of two uploads holds
// the threads for such work until the services are gone.
TEST_F(StreamsTest, WhatIsLeftToDoAtTheEndOutlivesNoService) {
  UploadSamples();
  const std::string job = Submit(CollectJob());
  ASSERT_GT(AnswerAll(AsRater("anna"), job), 0);
  const auto give_up_on = [&](const auto& stub, auto method, const auto& request, auto response) {
    const auto context = client::MakeContext(absl::Milliseconds(300));
    EXPECT_EQ((stub.get()->*method)(context.get(), request, &response).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  };
  const auto artifacts = v1::ArtifactService::NewStub(Api("submitter"));
  std::vector<int> pipes;
  for (const std::string content : {"1", "2"}) {
    const auto started = Call(artifacts, &v1::ArtifactService::Stub::StartUpload,
                              UploadOf(content.size(), artifact::Sha256Hex(content)));
    ASSERT_TRUE(started.ok()) << started.status();
    v1::UploadChunksResponse response;
    const auto context = client::MakeContext(absl::Seconds(60));
    const auto writer = artifacts->UploadChunks(context.get(), &response);
    v1::UploadChunk chunk;
    chunk.set_upload_id(started->upload_id());
    chunk.set_data(content);
    ASSERT_TRUE(writer->Write(chunk) && writer->WritesDone() && writer->Finish().ok());
    std::string staged;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("artifacts") + "/.staging")) {
      if (entry.is_regular_file() && ReadFile(entry.path().string()).value_or("") == content)
        staged = entry.path().string();
    }
    ASSERT_NE(staged, "");
    ASSERT_EQ(unlink(staged.c_str()), 0);
    ASSERT_EQ(mkfifo(staged.c_str(), 0600), 0);
    v1::FinishUploadRequest finish;
    finish.set_upload_id(started->upload_id());
    give_up_on(artifacts, &v1::ArtifactService::Stub::FinishUpload, finish, v1::Artifact());
    pipes.push_back(open(staged.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
    ASSERT_GE(pipes.back(), 0) << "nobody reads it";
  }
  v1::FreezeSetRequest freeze;
  freeze.set_job_id(job);
  freeze.set_name("frozen");
  give_up_on(v1::FeedbackService::NewStub(Api("submitter")), &FeedbackStub::FreezeSet, freeze, v1::ComparisonSet());
  std::thread lets_go([&] {
    absl::SleepFor(absl::Milliseconds(500));
    for (const int pipe : pipes) close(pipe);
  });
  mallopt(M_PERTURB, 0xa5);  // what is freed is overwritten, also where no sanitizer watches
  server_.reset();
  mallopt(M_PERTURB, 0);
  lets_go.join();
}

}  // namespace
}  // namespace rlhf::coordinator
