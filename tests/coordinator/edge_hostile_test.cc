// Clients that send nonsense, too much, too slowly, or too many calls: each gets its status, and the others do not
// notice.
#include <arpa/inet.h>
#include <google/protobuf/message.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <list>
#include <memory>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "client/cpp/artifact_cache.h"
#include "common/process.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/learner_service.grpc.pb.h"
#include "rlhf/v1/log_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace rlhf::coordinator {
namespace {

class HostileClients : public CoordinatorFixture {
 protected:
  // Bytes as a request of a unary method.
  absl::Status Send(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& bytes) {
    grpc::GenericStub stub(channel);
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    const auto context = client::MakeContext(absl::Seconds(30));
    grpc::Status status;
    absl::Notification done;
    stub.UnaryCall(context.get(), method, grpc::StubOptions(), &request, &response, [&](grpc::Status got) {
      status = got;
      done.Notify();
    });
    done.WaitForNotification();
    return FromGrpc(status);
  }
  // An honest client of another connection, which must not have to wait.
  void ExpectOthersAreServed() {
    const absl::Time asked = absl::Now();
    v1::ListJobsRequest request;
    const auto stub = v1::JobService::NewStub(Api("submitter"));
    const auto answer = Call(stub, &v1::JobService::Stub::ListJobs, request);
    EXPECT_TRUE(answer.ok()) << answer.status();
    EXPECT_LT(absl::Now() - asked, absl::Seconds(5));
  }
  // The thread sanitizer's shadow of what is touched counts as resident too.
#ifdef _GLIBCXX_TSAN
  static constexpr int64_t kShadow = 4;
#else
  static constexpr int64_t kShadow = 1;
#endif
  static int64_t ResidentKilobytes() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
      int64_t kilobytes = 0;
      if (line.rfind("VmRSS:", 0) == 0 && absl::SimpleAtoi(line.substr(6, line.size() - 9), &kilobytes))
        return kilobytes;
    }
    return 0;
  }
};

// What is no message of its type never reaches a handler: gRPC itself answers UNIMPLEMENTED. What happens to be one is
// refused for what it says.
TEST_F(HostileClients, GarbageIsNotARequest) {
  std::mt19937_64 random(7);
  const auto admin = Api("admin"), worker = Fleet("rollout_worker", "w0"), learner = Fleet("learner", "l0");
  struct Method {
    std::shared_ptr<grpc::Channel> channel;
    const char* name;
    const google::protobuf::Message& request;
  };
  int parsed = 0, unparsed = 0;
  for (const Method& method :
       {Method{admin, "/rlhf.v1.JobService/SubmitJob", v1::SubmitJobRequest::default_instance()},
        Method{admin, "/rlhf.v1.JobService/GetJob", v1::GetJobRequest::default_instance()},
        Method{admin, "/rlhf.v1.AdminService/CreateToken", v1::CreateTokenRequest::default_instance()},
        Method{worker, "/rlhf.v1.FleetService/Register", v1::RegisterRequest::default_instance()},
        Method{worker, "/rlhf.v1.FleetService/Heartbeat", v1::HeartbeatRequest::default_instance()},
        Method{worker, "/rlhf.v1.FleetService/LeasePrompts", v1::LeasePromptsRequest::default_instance()},
        Method{worker, "/rlhf.v1.FleetService/SubmitSamples", v1::SubmitSamplesRequest::default_instance()},
        Method{learner, "/rlhf.v1.LearnerService/CommitStep", v1::CommitStepRequest::default_instance()}}) {
    const std::unique_ptr<google::protobuf::Message> request(method.request.New());
    for (int i = 0; i < 50; ++i) {
      std::string bytes(1 + random() % 400, '\0');
      for (char& byte : bytes) byte = static_cast<char>(random());
      bytes.front() = '\x0a';  // a text whose length the rest seldom has
      const bool is_a_request = request->ParseFromString(bytes);
      ++(is_a_request ? parsed : unparsed);
      const absl::Status status = Send(method.channel, method.name, bytes);
      if (is_a_request) {
        EXPECT_THAT(status.code(),
                    testing::AnyOf(absl::StatusCode::kInvalidArgument, absl::StatusCode::kNotFound,
                                   absl::StatusCode::kPermissionDenied, absl::StatusCode::kFailedPrecondition))
            << method.name << ": " << status;
      } else {
        EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << method.name << ": " << status;
      }
    }
  }
  EXPECT_GT(unparsed, 10 * parsed);
  ExpectOthersAreServed();
}

TEST_F(HostileClients, WhatIsTooLargeIsRefused) {
  const absl::Status status = Send(Api("submitter"), "/rlhf.v1.JobService/SubmitJob", std::string((64 << 20) + 1, 'x'));
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  // Of few bytes, and many entries.
  v1::SubmitJobRequest crowded;
  crowded.set_request_id("r");
  for (int i = 0; i < 100'000; ++i) crowded.mutable_spec()->mutable_ppo()->mutable_scorer()->add_components();
  const auto jobs = v1::JobService::NewStub(Api("submitter"));
  const auto refused = Call(jobs, &v1::JobService::Stub::SubmitJob, crowded);
  EXPECT_EQ(ReasonOf(refused.status()), v1::INVALID_SPEC) << refused.status();
  EXPECT_THAT(refused.status().message(), testing::HasSubstr("expected at most 10000 entries"));
  v1::ValidateJobRequest validate;
  *validate.mutable_spec() = crowded.spec();
  const auto validated = Call(jobs, &v1::JobService::Stub::ValidateJob, validate);
  ASSERT_TRUE(validated.ok()) << validated.status();
  EXPECT_EQ(validated->problems_size(), 1);
  validate.clear_spec();
  for (int i = 0; i < 100'000; ++i) validate.add_uploads();
  EXPECT_TRUE(absl::IsInvalidArgument(Call(jobs, &v1::JobService::Stub::ValidateJob, validate).status()));
  ExpectOthersAreServed();
}

// What lists and logs would repeat to everybody: one call with much text in it would cost each of theirs.
TEST_F(HostileClients, TextsAreBoundedAndNamesArePlain) {
  const std::string much(1 << 20, 'x');
  v1::CancelJobRequest cancel;
  v1::SubmitJobRequest submit;
  submit.mutable_spec()->set_name("job");
  submit.mutable_spec()->mutable_collect()->set_samples("samples");
  submit.mutable_spec()->mutable_collect()->set_comparisons(1);
  ASSERT_TRUE(WriteFileDurably(dir_.File("samples.jsonl"),
                               "{\"id\":\"1\",\"index\":0,\"prompt\":\"q\",\"response\":\"a\"}\n"
                               "{\"id\":\"1\",\"index\":1,\"prompt\":\"q\",\"response\":\"b\"}\n")
                  .ok());
  ASSERT_TRUE(client::UploadArtifact(Api("submitter"), dir_.File("samples.jsonl"), "data", "default", "samples").ok());
  const auto jobs = v1::JobService::NewStub(Api("submitter"));
  submit.set_request_id(much);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(jobs, &v1::JobService::Stub::SubmitJob, submit).status()));
  submit.set_request_id("r");
  (*submit.mutable_spec()->mutable_labels())["k"] = much;
  const auto large = Call(jobs, &v1::JobService::Stub::SubmitJob, submit);
  EXPECT_EQ(ReasonOf(large.status()), v1::INVALID_SPEC) << large.status();
  submit.mutable_spec()->clear_labels();
  const auto job = Call(jobs, &v1::JobService::Stub::SubmitJob, submit);
  ASSERT_TRUE(job.ok()) << job.status();
  cancel.set_job_id(job->job().id());
  cancel.set_reason(much);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(jobs, &v1::JobService::Stub::CancelJob, cancel).status()));
  v1::HaltServiceRequest halt;
  halt.set_reason(much);
  const auto overseer = v1::OversightService::NewStub(Api("overseer"));
  const auto halted = Call(overseer, &v1::OversightService::Stub::HaltService, halt);
  ASSERT_TRUE(halted.ok()) << halted.status();
  EXPECT_TRUE(halted->halted()) << "an emergency does not wait for a shorter reason";
  EXPECT_LE(halted->reason().size(), 4096u);
  EXPECT_THAT(halted->reason(), testing::HasSubstr(absl::StrCat("(cut: it had ", much.size(), " bytes)")));
  v1::ResumeServiceRequest resume;
  resume.set_reason(much);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(overseer, &v1::OversightService::Stub::ResumeService, resume).status()));
  resume.set_reason("over");
  EXPECT_TRUE(Call(overseer, &v1::OversightService::Stub::ResumeService, resume).ok());
  v1::DecideGateRequest decide;
  decide.set_gate_id("none");
  decide.set_comment(much);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(overseer, &v1::OversightService::Stub::DecideGate, decide).status()));

  const auto fleet = v1::FleetService::NewStub(Fleet("rollout_worker", "w0"));
  v1::RegisterRequest worker;
  worker.set_role(v1::ROLE_ROLLOUT_WORKER);
  worker.set_instance_id("w0");
  worker.set_protocol_version(2);
  worker.set_slots(1);
  EXPECT_TRUE(Call(fleet, &v1::FleetService::Stub::Register, worker).ok());
  const auto refused = [&](auto change) {
    v1::RegisterRequest changed = worker;
    change(&changed);
    return absl::IsInvalidArgument(Call(fleet, &v1::FleetService::Stub::Register, changed).status());
  };
  EXPECT_TRUE(refused([&](v1::RegisterRequest* r) { r->set_instance_id("w0-" + much); }));
  EXPECT_TRUE(refused([](v1::RegisterRequest* r) { r->set_instance_id("w0-\x1b[2J\nroot"); }));
  EXPECT_TRUE(refused([](v1::RegisterRequest* r) { r->set_device("cuda:0\n"); }));
  EXPECT_TRUE(refused([&](v1::RegisterRequest* r) { r->set_address(much); }));
  EXPECT_TRUE(refused([](v1::RegisterRequest* r) { r->set_slots(-1); }));
}

class Follower : public grpc::ClientReadReactor<v1::LogLine> {
 public:
  Follower(v1::LogService::Stub* stub, std::atomic<int>* accepted, absl::BlockingCounter* begun,
           absl::BlockingCounter* ended)
      : accepted_(accepted), begun_(begun), ended_(ended) {
    request_.set_follow(true);
    stub->async()->FollowLogs(&context_, &request_, this);
    StartRead(&line_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }
  void OnReadInitialMetadataDone(bool ok) override {
    if (ok) ++*accepted_;
    begun_->DecrementCount();
  }
  void OnReadDone(bool ok) override {
    if (ok) StartRead(&line_);
  }
  void OnDone(const grpc::Status&) override { ended_->DecrementCount(); }

 private:
  grpc::ClientContext context_;
  v1::FollowLogsRequest request_;
  v1::LogLine line_;
  std::atomic<int>* const accepted_;
  absl::BlockingCounter* const begun_;
  absl::BlockingCounter* const ended_;
};

// All open at once: a connection may have a thousand.
TEST_F(HostileClients, TenThousandStreamsDoNotKeepOthersOut) {
  constexpr int kConnections = 20, kStreamsEach = 500, kStreams = kConnections * kStreamsEach;
  const int64_t before = ResidentKilobytes();
  absl::BlockingCounter begun(kStreams), ended(kStreams);
  std::atomic<int> accepted{0};
  std::vector<std::unique_ptr<v1::LogService::Stub>> stubs;
  std::list<Follower> followers;
  for (int connection = 0; connection < kConnections; ++connection) {
    stubs.push_back(v1::LogService::NewStub(Api("admin")));
    for (int i = 0; i < kStreamsEach; ++i) followers.emplace_back(stubs.back().get(), &accepted, &begun, &ended);
  }
  begun.Wait();
  EXPECT_EQ(accepted.load(), kStreams);
  ExpectOthersAreServed();
  // Both ends are in this process: 200 kB a stream.
  EXPECT_LT(ResidentKilobytes() - before, kShadow * 2'000'000);
  for (Follower& follower : followers) follower.Cancel();
  ended.Wait();
  ExpectOthersAreServed();
}

// Connections that never finish their handshake, and uploads that never send anything.
TEST_F(HostileClients, WhoSendsNothingHoldsUpNobody) {
  constexpr int kEach = 100;
  std::vector<int> sockets;
  for (const char* listener : {"api", "fleet"}) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons(static_cast<uint16_t>(server_->ports().at(listener)));
    for (int i = 0; i < kEach; ++i) {
      sockets.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      ASSERT_EQ(connect(sockets.back(), reinterpret_cast<sockaddr*>(&at), sizeof(at)), 0) << listener;
      ASSERT_EQ(send(sockets.back(), "\x16", 1, MSG_NOSIGNAL), 1);  // a TLS record's first byte
    }
  }
  const auto uploads = v1::ArtifactService::NewStub(Api("submitter"));
  std::list<grpc::ClientContext> contexts;
  std::vector<v1::UploadChunksResponse> responses(kEach);
  std::vector<std::unique_ptr<grpc::ClientWriter<v1::UploadChunk>>> writers;
  for (int i = 0; i < kEach; ++i) {
    grpc::ClientContext& context = contexts.emplace_back();
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(3));
    writers.push_back(uploads->UploadChunks(&context, &responses[static_cast<size_t>(i)]));
  }
  ExpectOthersAreServed();
  for (const auto& writer : writers) EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ExpectOthersAreServed();
  for (const int fd : sockets) close(fd);
}

// Who follows and never reads holds up nobody, and what is not read does not pile up here.
TEST_F(HostileClients, SlowReadersCostBoundedMemory) {
  constexpr int kReaders = 100, kCalls = 200, kLines = 100;
  const auto channel = Fleet("learner", "l0");
  v1::RegisterRequest identity;
  identity.set_role(v1::ROLE_LEARNER);
  identity.set_instance_id("l0");
  identity.set_protocol_version(kProtocolVersion);
  const auto session = Call(v1::FleetService::NewStub(channel), &v1::FleetService::Stub::Register, identity);
  ASSERT_TRUE(session.ok()) << session.status();
  const auto follow = v1::LogService::NewStub(Api("admin"));
  v1::FollowLogsRequest request;
  request.set_follow(true);
  std::list<grpc::ClientContext> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::LogLine>>> readers;
  for (int i = 0; i < kReaders; ++i) {
    readers.push_back(follow->FollowLogs(&contexts.emplace_back(), request));
    readers.back()->WaitForInitialMetadata();
  }
  const int64_t before = ResidentKilobytes();
  v1::AppendLogsRequest append;
  append.set_session_id(session->session_id());
  for (int i = 0; i < kLines; ++i) {
    v1::LogLine* line = append.add_lines();
    line->set_level("warn");
    line->set_message(std::string(1000, 'x'));
  }
  const auto append_stub = v1::LogService::NewStub(channel);
  for (int i = 0; i < kCalls; ++i) {
    const auto appended = Call(append_stub, &v1::LogService::Stub::AppendLogs, append);
    ASSERT_TRUE(appended.ok()) << appended.status();
  }
  ExpectOthersAreServed();
  // 20 MB were logged: queues without a bound would hold two gigabytes. Both ends are in this process.
  EXPECT_LT(ResidentKilobytes() - before, kShadow * 400'000);
  for (grpc::ClientContext& context : contexts) context.TryCancel();
  v1::LogLine line;
  for (const auto& reader : readers) {
    while (reader->Read(&line)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  ExpectOthersAreServed();
}

}  // namespace
}  // namespace rlhf::coordinator
