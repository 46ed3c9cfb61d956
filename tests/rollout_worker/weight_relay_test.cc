// Weights from worker to worker: each receives from one source while it serves the next; sources that die, lie or
// stall.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "coordinator/scheduling/weight_fan_out.h"
#include "learner/service/weight_publisher.h"
#include "model/weights_io.h"
#include "rlhf/v1/admin_service.pb.h"
#include "rlhf/v1/artifact_service.pb.h"
#include "rlhf/v1/feedback_service.pb.h"
#include "rlhf/v1/job_service.pb.h"
#include "rlhf/v1/learner_service.pb.h"
#include "rlhf/v1/log_service.pb.h"
#include "rlhf/v1/oversight_service.pb.h"
#include "rlhf/v1/reward_service.pb.h"
#include "rollout_worker/weight_relay.h"
#include "rollout_worker/weight_subscriber.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

absl::StatusOr<std::shared_ptr<grpc::Channel>> Plaintext(const std::string& address) {
  client::ChannelOptions options;
  options.address = address;
  options.tls.insecure = true;
  return client::MakeChannel(options);
}

// Remembers from where on it was asked to stream.
class AskedPublisher final : public learner::WeightPublisher {
 public:
  client::WeightsWriter* Stream(const v1::StreamWeightsRequest& request) override {
    {
      absl::MutexLock lock(&mu_);
      offsets_.push_back(request.offset());
    }
    return learner::WeightPublisher::Stream(request);
  }
  std::vector<uint64_t> TakeOffsets() {
    absl::MutexLock lock(&mu_);
    return std::exchange(offsets_, {});
  }

 private:
  absl::Mutex mu_;
  std::vector<uint64_t> offsets_ ABSL_GUARDED_BY(mu_);
};

// Knows whether it was asked for a stream.
class AskedRelay final : public WeightRelay {
 public:
  client::WeightsWriter* Stream(const v1::StreamWeightsRequest& request) override {
    asked = true;
    return WeightRelay::Stream(request);
  }
  std::atomic<bool> asked{false};
};

// What a worker serves, and how it fetches.
struct Peer {
  explicit Peer(absl::Duration stall = absl::Seconds(30))
      : server(ServeOnLoopback({&relay})),
        subscriber(Plaintext, {.relay = &relay, .stall = stall, .patience = absl::Seconds(30)}) {}
  std::string address() const { return absl::StrCat("127.0.0.1:", server->port()); }
  AskedRelay relay;
  std::unique_ptr<RpcServer> server;
  WeightSubscriber subscriber;
};

class WeightRelayTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"));
    server_ = ServeOnLoopback({&publisher_});
    ASSERT_NE(server_, nullptr);
    model::LoadOptions load;
    load.dtype = torch::kBFloat16;
    auto model = model::LoadModel(dir_.File("model"), load);
    ASSERT_TRUE(model.ok()) << model.status();
    policy_ = *std::move(model);
  }

  // The version, to be had from these and at last from the learner.
  v1::PolicySource From(const v1::PolicyVersion& version, const std::vector<std::string>& workers) const {
    v1::PolicySource source;
    source.set_job_id("job");
    *source.mutable_version() = version;
    source.set_relay(true);
    for (const std::string& worker : workers) source.add_addresses(worker);
    source.add_addresses(absl::StrCat("127.0.0.1:", server_->port()));
    return source;
  }
  v1::PolicyVersion Publish(int64_t step) {
    v1::PolicyVersion version;
    version.set_step(step);
    version.set_lineage(1);
    version.set_digest(model::WeightsDigest(*policy_));
    const absl::Status staged = publisher_.Stage("job", version, *policy_);
    EXPECT_TRUE(staged.ok()) << staged;
    return version;
  }
  void ChangeSomeElements() {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : policy_->trained_parameters()) {
      torch::Tensor flat = parameter.view({-1});
      flat.slice(0, 0, flat.size(0), 200).add_(1);
    }
  }
  // As the learner alone sends it.
  FetchedWeights Whole(const v1::PolicyVersion& version) {
    auto weights = WeightSubscriber(Plaintext).Fetch(From(version, {}));
    EXPECT_TRUE(weights.ok()) << weights.status();
    publisher_.TakeOffsets();
    return weights.ok() ? *std::move(weights) : FetchedWeights();
  }
  static std::shared_ptr<uint8_t[]> CopyOf(const FetchedWeights& weights) {
    std::shared_ptr<uint8_t[]> bytes(new uint8_t[weights.bytes.size()]);
    std::copy(weights.bytes.begin(), weights.bytes.end(), bytes.get());
    return bytes;
  }
  static void ExpectEqual(const absl::StatusOr<FetchedWeights>& weights, const FetchedWeights& expected) {
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->delta, expected.delta);
    EXPECT_TRUE(weights->bytes == expected.bytes);
  }
  // Of the tensor in the middle: where one source stops and the next one goes on.
  static uint64_t Middle(const FetchedWeights& weights) {
    return weights.manifest.tensors(weights.manifest.tensors_size() / 2).offset();
  }

  // A stream of the relay's as another worker sees it, byte for byte.
  class Reading {
   public:
    Reading(const std::string& address, const FetchedWeights& weights) {
      auto channel = Plaintext(address);
      EXPECT_TRUE(channel.ok()) << channel.status();
      stub_ = v1::WeightsService::NewStub(*channel);
      v1::StreamWeightsRequest request;
      request.set_job_id("job");
      *request.mutable_version() = weights.manifest.version();
      // The worker may not have begun.
      do {
        reader_.reset();
        context_ = client::MakeContext(absl::Seconds(30));
        reader_ = stub_->StreamWeights(context_.get(), request);
        Next();
      } while (!read_ && absl::IsNotFound(status_));
    }
    // Reads until there are so many bytes.
    void Until(uint64_t size) {
      while (read_ && bytes_.size() < size) Next();
      EXPECT_EQ(bytes_.size(), size) << status_;
    }
    absl::Status End() {
      while (read_) Next();
      return status_;
    }
    const std::string& bytes() const { return bytes_; }

   private:
    void Next() {
      v1::WeightsChunk chunk;
      read_ = reader_->Read(&chunk);
      if (!read_) {
        status_ = FromGrpc(reader_->Finish());
        return;
      }
      EXPECT_EQ(chunk.offset(), bytes_.size());
      bytes_ += chunk.data();
    }
    std::unique_ptr<v1::WeightsService::Stub> stub_;
    std::unique_ptr<grpc::ClientContext> context_;
    std::unique_ptr<grpc::ClientReader<v1::WeightsChunk>> reader_;
    bool read_ = false;
    absl::Status status_;
    std::string bytes_;
  };

  ScratchDir dir_;
  AskedPublisher publisher_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<model::Transformer> policy_;
};

TEST_F(WeightRelayTest, TheLearnerServesOnlyTheFirstOfManyWorkers) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  coordinator::WeightFanOut tree(2);
  std::vector<std::unique_ptr<Peer>> peers;
  std::vector<absl::StatusOr<FetchedWeights>> fetched(9, absl::UnknownError("not fetched"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < fetched.size(); ++i) {
    peers.push_back(std::make_unique<Peer>());
    const v1::PolicySource source = From(version, tree.SourcesOf(peers[i]->address(), peers[i]->address()));
    threads.emplace_back([&fetched, i, source, peer = peers[i].get()] { fetched[i] = peer->subscriber.Fetch(source); });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < fetched.size(); ++i) {
    ExpectEqual(fetched[i], whole);
    if (fetched[i].ok()) {
      EXPECT_EQ(fetched[i]->from_workers, i < 2 ? 0 : whole.bytes.size()) << "worker " << i;
    }
  }
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(0, 0));
}

TEST_F(WeightRelayTest, ADeltaIsSentOnToo) {
  const v1::PolicyVersion first = Publish(1);
  ChangeSomeElements();
  const v1::PolicyVersion second = Publish(2);
  Peer parent, child, newcomer;
  const auto delta = parent.subscriber.Fetch(From(second, {}), first.digest());
  ASSERT_TRUE(delta.ok()) << delta.status();
  ASSERT_TRUE(delta->delta);
  publisher_.TakeOffsets();
  const auto passed_on = child.subscriber.Fetch(From(second, {parent.address()}), first.digest());
  ExpectEqual(passed_on, *delta);
  EXPECT_THAT(publisher_.TakeOffsets(), IsEmpty());
  // Who has not the version before needs the whole, which no worker has.
  const auto whole = newcomer.subscriber.Fetch(From(second, {child.address(), parent.address()}));
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->bytes.size(), whole->manifest.total_size());
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(0));
  // One wrong byte: not even looked into.
  const std::shared_ptr<uint8_t[]> wrong = CopyOf(*delta);
  wrong[delta->bytes.size() / 2] ^= 1;
  parent.relay.Begin(delta->manifest, true, absl::MakeConstSpan(wrong.get(), delta->bytes.size()), wrong)
      ->Verified(delta->bytes.size());
  const auto checked = child.subscriber.Fetch(From(second, {parent.address()}), first.digest());
  ExpectEqual(checked, *delta);
  EXPECT_EQ(checked->from_workers, 0u);
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(0));
}

// A worker passes on what it has while the rest is missing; when its source dies it goes on at the next one, and
// whoever reads from it notices nothing.
TEST_F(WeightRelayTest, ASourceThatDiesInTheMiddleIsReplacedWhereItStopped) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  auto parent = std::make_unique<Peer>();
  const auto half = parent->relay.Begin(whole.manifest, false, whole.bytes, whole.owner);
  half->Verified(Middle(whole));
  Peer child;
  absl::StatusOr<FetchedWeights> fetched = absl::UnknownError("not fetched");
  std::thread thread([&] { fetched = child.subscriber.Fetch(From(version, {parent->address()})); });
  Reading grandchild(child.address(), whole);
  grandchild.Until(Middle(whole));
  EXPECT_THAT(publisher_.TakeOffsets(), IsEmpty());
  parent->server->Shutdown(absl::ZeroDuration());
  const absl::Status ended = grandchild.End();
  thread.join();
  EXPECT_TRUE(ended.ok()) << ended;
  ExpectEqual(fetched, whole);
  EXPECT_EQ(fetched->from_workers, Middle(whole));
  EXPECT_TRUE(std::equal(whole.bytes.begin(), whole.bytes.end(), grandchild.bytes().begin(), grandchild.bytes().end(),
                         [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(Middle(whole)));
}

TEST_F(WeightRelayTest, ASourceThatSendsWrongBytesIsDropped) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  Peer liar, honest, child;
  const std::shared_ptr<uint8_t[]> wrong = CopyOf(whole);
  wrong[Middle(whole)] ^= 1;
  liar.relay.Begin(whole.manifest, false, absl::MakeConstSpan(wrong.get(), whole.bytes.size()), wrong)
      ->Verified(whole.bytes.size());
  honest.relay.Begin(whole.manifest, false, whole.bytes, whole.owner)->Verified(whole.bytes.size());
  ExpectEqual(child.subscriber.Fetch(From(version, {liar.address(), honest.address()})), whole);
  EXPECT_THAT(publisher_.TakeOffsets(), IsEmpty());
  // What the child serves is what it verified.
  Reading grandchild(child.address(), whole);
  EXPECT_TRUE(grandchild.End().ok());
  EXPECT_TRUE(std::equal(whole.bytes.begin(), whole.bytes.end(), grandchild.bytes().begin(), grandchild.bytes().end(),
                         [](uint8_t a, char b) { return a == static_cast<uint8_t>(b); }));
  // With nobody honest left but the learner: from the first wrong tensor on.
  const auto fetched = child.subscriber.Fetch(From(version, {liar.address()}));
  ExpectEqual(fetched, whole);
  EXPECT_EQ(fetched->from_workers, Middle(whole));
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(Middle(whole)));
}

// The manifest is the learner's: a worker that makes up its own, with digests that fit its bytes, changes nothing.
TEST_F(WeightRelayTest, AWorkersOwnManifestCountsForNothing) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  ChangeSomeElements();
  const FetchedWeights other = Whole(Publish(2));
  v1::WeightsManifest forged = other.manifest;
  *forged.mutable_version() = version;
  Peer forger, child;
  forger.relay.Begin(forged, false, other.bytes, other.owner)->Verified(other.bytes.size());
  ExpectEqual(child.subscriber.Fetch(From(version, {forger.address()})), whole);
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(0));
}

TEST_F(WeightRelayTest, ASourceThatStallsIsLeft) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  Peer stalled, child(absl::Milliseconds(200));
  stalled.relay.Begin(whole.manifest, false, whole.bytes, whole.owner)->Verified(Middle(whole));
  const auto fetched = child.subscriber.Fetch(From(version, {stalled.address()}));
  ExpectEqual(fetched, whole);
  EXPECT_EQ(fetched->from_workers, Middle(whole));
}

TEST_F(WeightRelayTest, ASourceThatHasNotBegunIsWaitedForAndOneThatIsPastItIsNot) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  Peer late, child;
  absl::StatusOr<FetchedWeights> fetched = absl::UnknownError("not fetched");
  std::thread thread([&] { fetched = child.subscriber.Fetch(From(version, {late.address()})); });
  while (!late.relay.asked) std::this_thread::yield();
  const auto weights = late.relay.Begin(whole.manifest, false, whole.bytes, whole.owner);
  weights->Verified(whole.bytes.size());
  thread.join();
  ExpectEqual(fetched, whole);
  EXPECT_THAT(publisher_.TakeOffsets(), IsEmpty());

  ChangeSomeElements();
  const FetchedWeights newer = Whole(Publish(2));
  late.relay.Begin(newer.manifest, false, newer.bytes, newer.owner);
  const absl::Time asked = absl::Now();
  ExpectEqual(child.subscriber.Fetch(From(version, {late.address()})), whole);
  EXPECT_LT(absl::Now() - asked, absl::Seconds(2)) << "it waited for what cannot come";
  EXPECT_THAT(publisher_.TakeOffsets(), ElementsAre(0));
}

// The memory of one version: readers of the last one are sent away.
TEST_F(WeightRelayTest, TheNextVersionEndsTheStreamsOfTheLast) {
  const v1::PolicyVersion version = Publish(1);
  const FetchedWeights whole = Whole(version);
  Peer worker;
  std::weak_ptr<uint8_t[]> held;
  {
    const std::shared_ptr<uint8_t[]> bytes = CopyOf(whole);
    held = bytes;
    worker.relay.Begin(whole.manifest, false, absl::MakeConstSpan(bytes.get(), whole.bytes.size()), bytes)
        ->Verified(Middle(whole));
  }
  Reading reader(worker.address(), whole);
  reader.Until(Middle(whole));
  EXPECT_FALSE(held.expired());
  worker.relay.Drop();
  EXPECT_TRUE(absl::IsFailedPrecondition(reader.End()));
  for (const absl::Time patience = absl::Now() + absl::Seconds(10); !held.expired() && absl::Now() < patience;)
    std::this_thread::yield();  // gRPC ends the stream on a thread of its own
  EXPECT_TRUE(held.expired());
}

TEST_F(WeightRelayTest, WhatIsNotToBeRelayedIsNotKept) {
  const v1::PolicyVersion version = Publish(1);
  Peer worker;
  v1::PolicySource source = From(version, {});
  ASSERT_TRUE(worker.subscriber.Fetch(source).ok());
  auto stub = v1::WeightsService::NewStub(*Plaintext(worker.address()));
  v1::GetManifestRequest request;
  request.set_job_id("job");
  *request.mutable_version() = version;
  v1::WeightsManifest manifest;
  EXPECT_TRUE(stub->GetManifest(client::MakeContext(absl::Seconds(10)).get(), request, &manifest).ok());
  source.set_relay(false);
  ASSERT_TRUE(worker.subscriber.Fetch(source).ok());
  EXPECT_EQ(stub->GetManifest(client::MakeContext(absl::Seconds(10)).get(), request, &manifest).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

// Of the learner's listener as of the relay's.
TEST(WeightRelayRoles, OnlyRolloutWorkersReadWeightsAndNothingElseIsThere) {
  const Authorizer authorize = client::AuthorizeWeights("");
  const google::protobuf::FileDescriptor* const files[] = {
      v1::ListWorkersRequest::descriptor()->file(), v1::StartUploadRequest::descriptor()->file(),
      v1::NextTasksRequest::descriptor()->file(),   v1::RegisterRequest::descriptor()->file(),
      v1::SubmitJobRequest::descriptor()->file(),   v1::JoinGroupRequest::descriptor()->file(),
      v1::AppendLogsRequest::descriptor()->file(),  v1::ListGatesRequest::descriptor()->file(),
      v1::ScoreRequest::descriptor()->file(),       v1::GetManifestRequest::descriptor()->file()};
  int methods = 0, weights = 0;
  for (const auto* file : files) {
    for (int i = 0; i < file->service_count(); ++i) {
      for (int j = 0; j < file->service(i)->method_count(); ++j, ++methods) {
        const std::string method =
            absl::StrCat("/", file->service(i)->full_name(), "/", file->service(i)->method(j)->name());
        const bool served = absl::StartsWith(method, "/rlhf.v1.WeightsService/");
        weights += served ? 1 : 0;
        for (const char* role : {"rollout_worker", "learner", "reward_server", "coordinator", "visitor"}) {
          const auto caller = authorize(method, "", absl::StrCat("spiffe://test/role/", role, "/instance/one"));
          EXPECT_EQ(caller.ok(), served && std::string(role) == "rollout_worker") << method << " by " << role;
          if (caller.ok()) {
            EXPECT_EQ(caller->subject, "one");
          }
        }
        EXPECT_TRUE(absl::IsUnauthenticated(authorize(method, "a token", "").status())) << method;
      }
    }
  }
  EXPECT_EQ(weights, 2);
  EXPECT_GT(methods, 40);
  EXPECT_TRUE(authorize("/grpc.health.v1.Health/Check", "", "spiffe://test/role/coordinator/instance/one").ok());
  EXPECT_FALSE(authorize("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "",
                         "spiffe://test/role/rollout_worker/instance/one")
                   .ok());
}

}  // namespace
}  // namespace rlhf::rollout
