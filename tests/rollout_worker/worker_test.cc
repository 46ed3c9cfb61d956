// A rollout worker against a coordinator of this test: what it submits and how often, and what it hands back.
#include "rollout_worker/worker.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "artifact/artifact_root.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "model/weights_io.h"
#include "rollout_worker/policy_loader.h"
#include "tests/rollout_worker/engine_runs.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::Property;

v1::Sample SampleOf(int ordinal, size_t bytes) {
  v1::Sample sample;
  sample.mutable_id()->set_ordinal(ordinal);
  sample.set_response_text(std::string(bytes, 'x'));
  return sample;
}

TEST(SubmissionsTest, AreCutByBytesInTheSamplesOrder) {
  std::vector<std::vector<int>> cut;
  for (const v1::SubmitSamplesRequest& request :
       SubmissionsOf({SampleOf(0, 10), SampleOf(1, 70), SampleOf(2, 300), SampleOf(3, 10)}, 100)) {
    cut.emplace_back();
    for (const v1::Sample& sample : request.samples()) cut.back().push_back(sample.id().ordinal());
  }
  EXPECT_THAT(cut, ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(3)));
  EXPECT_THAT(SubmissionsOf({}, 100), testing::IsEmpty());
}

// Leases what it was told to, once, and answers submissions by `answers`, one after the other, then with OK.
class FakeCoordinator final : public v1::FleetService::CallbackService {
 public:
  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context, const v1::RegisterRequest*,
                                     v1::RegisterResponse* response) override {
    response->set_session_id("session");
    response->set_heartbeat_interval_ms(20);
    response->set_lease_ms(1000);
    return Answer(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* Heartbeat(grpc::CallbackServerContext* context, const v1::HeartbeatRequest* request,
                                      v1::HeartbeatResponse*) override {
    absl::MutexLock lock(&mu_);
    cache_bytes_ = request->cache_bytes();
    return Answer(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* LeasePrompts(grpc::CallbackServerContext* context, const v1::LeasePromptsRequest*,
                                         v1::LeasePromptsResponse* response) override {
    absl::MutexLock lock(&mu_);
    *response = std::exchange(work_, {});
    return Answer(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* SubmitSamples(grpc::CallbackServerContext* context, const v1::SubmitSamplesRequest* request,
                                          v1::SubmitSamplesResponse* response) override {
    absl::MutexLock lock(&mu_);
    absl::Status status;
    if (!answers_.empty()) {
      status = answers_.front();
      answers_.erase(answers_.begin());
    }
    ++submissions_;
    for (const v1::Sample& sample : request->samples()) {
      if (status.ok()) submitted_.push_back(sample);
      response->add_verdicts()->set_accepted(true);
    }
    return Answer(context, status);
  }
  grpc::ServerUnaryReactor* ReturnLeases(grpc::CallbackServerContext* context, const v1::ReturnLeasesRequest* request,
                                         v1::ReturnLeasesResponse*) override {
    absl::MutexLock lock(&mu_);
    returned_.insert(returned_.end(), request->leases().begin(), request->leases().end());
    return Answer(context, absl::OkStatus());
  }

  void Give(v1::LeasePromptsResponse work, std::vector<absl::Status> answers = {}) {
    absl::MutexLock lock(&mu_);
    answers_ = std::move(answers);
    work_ = std::move(work);
  }
  // Once there are so many.
  std::vector<v1::Sample> Submitted(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return submitted_.size() >= count; };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(60)));
    return submitted_;
  }
  std::vector<v1::ReturnedLease> Returned(size_t count) {
    absl::MutexLock lock(&mu_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return returned_.size() >= count; };
    EXPECT_TRUE(mu_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(60)));
    return returned_;
  }
  // Whether a heartbeat says so in time.
  bool SaysCacheBytes(int64_t bytes) {
    absl::MutexLock lock(&mu_);
    const auto says = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return cache_bytes_ == bytes; };
    return mu_.AwaitWithTimeout(absl::Condition(&says), absl::Seconds(60));
  }
  int submissions() {
    absl::MutexLock lock(&mu_);
    return submissions_;
  }

 private:
  static grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const absl::Status& status) {
    auto* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  absl::Mutex mu_;
  v1::LeasePromptsResponse work_ ABSL_GUARDED_BY(mu_);
  std::vector<absl::Status> answers_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::Sample> submitted_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::ReturnedLease> returned_ ABSL_GUARDED_BY(mu_);
  int submissions_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t cache_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

class WorkerTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"), 4);
    const artifact::ArtifactRoot root(dir_.File("shared"));
    const auto published = root.Publish(dir_.File("model"));
    ASSERT_TRUE(published.ok()) << published.status();
    digest_ = published->digest;
    server_ = ServeOnLoopback({&coordinator_});
    ASSERT_NE(server_, nullptr);
  }
  void Start(const PolicyLoaderOptions& options) {
    loader_ = std::make_unique<PolicyLoader>(&artifacts_, nullptr, options);
    client::ChannelOptions channel;
    channel.address = absl::StrCat("127.0.0.1:", server_->port());
    channel.tls.insecure = true;
    v1::RegisterRequest identity;
    identity.set_role(v1::ROLE_ROLLOUT_WORKER);
    identity.set_instance_id("rollout-0");
    auto made = client::MakeChannel(channel);
    ASSERT_TRUE(made.ok()) << made.status();
    worker_ = std::make_unique<Worker>(*std::move(made), identity, loader_.get(), &metrics_);
    worker_->Start();
  }
  v1::LeasePromptsResponse Work(bool deterministic = false) const {
    v1::LeasePromptsResponse work;
    *work.add_leases() = LeaseOf("the cat", 0, 2, 5);
    v1::PolicySource& policy = *work.mutable_leases(0)->mutable_policy();
    policy.set_job_id("job");
    policy.set_artifact(digest_);
    policy.set_deterministic(deterministic);
    return work;
  }

  ScratchDir dir_;
  std::string digest_;
  FakeCoordinator coordinator_;
  std::unique_ptr<RpcServer> server_;
  client::ArtifactCache artifacts_{dir_.File("shared"), dir_.File("private"), nullptr};
  MetricsRegistry metrics_{"rollout_worker"};
  std::unique_ptr<PolicyLoader> loader_;
  std::unique_ptr<Worker> worker_;
};

TEST_F(WorkerTest, WhatCannotBeSubmittedForNowIsTriedAgain) {
  coordinator_.Give(Work(), {absl::InternalError("the store"), absl::ResourceExhaustedError("its volume is full")});
  Start({});
  EXPECT_EQ(coordinator_.Submitted(2).size(), 2u);
  EXPECT_GE(coordinator_.submissions(), 3);
  EXPECT_THAT(coordinator_.Returned(0), testing::IsEmpty());
}

TEST_F(WorkerTest, WhatCanNeverBeSubmittedIsHandedBackAndTheWorkerGoesOn) {
  v1::LeasePromptsResponse one = Work();
  one.mutable_leases(0)->mutable_samples()->RemoveLast();
  coordinator_.Give(one, {absl::InvalidArgumentError("no such sample")});
  Start({});
  const std::vector<v1::ReturnedLease> returned = coordinator_.Returned(1);
  ASSERT_EQ(returned.size(), 1u);
  EXPECT_THAT(returned[0].error(), HasSubstr("no such sample"));
  EXPECT_EQ(returned[0].attempt(), 1);
  EXPECT_FALSE(returned[0].permanent());
  coordinator_.Give(Work());
  EXPECT_EQ(coordinator_.Submitted(2).size(), 2u);
}

TEST_F(WorkerTest, AJobOfAnotherPrecisionIsHandedBackAsUnsuited) {
  PolicyLoaderOptions options;
  options.int8 = true;
  coordinator_.Give(Work(/*deterministic=*/true));
  Start(options);
  const std::vector<v1::ReturnedLease> returned = coordinator_.Returned(2);
  ASSERT_EQ(returned.size(), 2u);
  EXPECT_THAT(returned, Each(AllOf(Property(&v1::ReturnedLease::unsuited, true),
                                   Property(&v1::ReturnedLease::permanent, false))));
  EXPECT_THAT(returned[0].error(), HasSubstr("start this worker with --device cpu --precision float32"));
}

TEST_F(WorkerTest, SamplingOfANewerReleaseIsLeftToWorkersThatKnowIt) {
  v1::LeasePromptsResponse newer = Work();
  v1::SamplingParams* const sampling = newer.mutable_leases(0)->mutable_sampling();
  sampling->GetReflection()->MutableUnknownFields(sampling)->AddVarint(900, 1);
  coordinator_.Give(newer);
  Start({});
  const std::vector<v1::ReturnedLease> returned = coordinator_.Returned(2);
  ASSERT_EQ(returned.size(), 2u);
  EXPECT_THAT(returned, Each(AllOf(Property(&v1::ReturnedLease::unsuited, true),
                                   Property(&v1::ReturnedLease::permanent, false))));
  EXPECT_THAT(returned[0].error(), AllOf(HasSubstr("#900"), HasSubstr("update this rollout worker")));
}

TEST_F(WorkerTest, AModelThatLacksAFileIsTheJobsFault) {
  const artifact::ArtifactRoot root(dir_.File("shared"));
  for (const char* file : {"config.json", "tokenizer.json", "model.safetensors"}) {
    SCOPED_TRACE(file);
    const std::string lacking = dir_.File(std::string("without ") + file);
    std::filesystem::copy(dir_.File("model"), lacking);
    ASSERT_TRUE(std::filesystem::remove(lacking + "/" + file));
    const auto published = root.Publish(lacking);
    ASSERT_TRUE(published.ok()) << published.status();
    digest_ = published->digest;
    const size_t before = coordinator_.Returned(0).size();
    coordinator_.Give(Work());
    if (worker_ == nullptr) Start({});
    const v1::ReturnedLease returned = coordinator_.Returned(before + 2).back();
    EXPECT_TRUE(returned.permanent());
    EXPECT_FALSE(returned.unavailable() || returned.unsuited());
    EXPECT_THAT(returned.error(), AllOf(HasSubstr(file), HasSubstr(digest_), Not(HasSubstr(dir_.path()))));
  }
}

TEST_F(WorkerTest, AModelThatItHasNoRoomForIsPassedOverAfterSomeTries) {
  const std::string path = dir_.File("model/config.json");
  const auto text = ReadFile(path);
  ASSERT_TRUE(text.ok()) << text.status();
  auto config = nlohmann::json::parse(*text);
  config["max_position_embeddings"] = 2147483647;
  ASSERT_TRUE(WriteFileDurably(path, config.dump()).ok());
  const auto published = artifact::ArtifactRoot(dir_.File("shared")).Publish(dir_.File("model"));
  ASSERT_TRUE(published.ok()) << published.status();
  digest_ = published->digest;
  PolicyLoaderOptions options;
  options.engine.slots = 8192;  // beyond all addresses, also where nobody counts what is allocated
  Start(options);
  size_t tries = 0;
  v1::ReturnedLease returned;
  do {
    coordinator_.Give(Work());
    tries += 2;
    returned = coordinator_.Returned(tries).back();
    ASSERT_TRUE(returned.unavailable() || returned.unsuited()) << returned.DebugString();
  } while (!returned.unsuited() && tries < 40);
  EXPECT_EQ(tries, 10u);
  EXPECT_FALSE(returned.permanent());
  EXPECT_THAT(returned.error(), HasSubstr("more memory"));
}

TEST_F(WorkerTest, WeightsThatAreNoNumbersAreSaidToBe) {
  auto model = model::LoadModel(dir_.File("model"));
  ASSERT_TRUE(model.ok()) << model.status();
  {
    const torch::NoGradGuard no_grad;
    for (auto& [name, parameter] : (*model)->named_parameters()) parameter.detach().fill_(std::nanf(""));
  }
  const std::string damaged = dir_.File("damaged");
  ASSERT_TRUE(model::SaveModel(**model, damaged, dir_.File("model")).ok());
  const auto published = artifact::ArtifactRoot(dir_.File("shared")).Publish(damaged);
  ASSERT_TRUE(published.ok()) << published.status();
  digest_ = published->digest;
  Start({});
  size_t returned = 0;
  for (const double temperature : {1.0, 0.0}) {
    SCOPED_TRACE(temperature);
    v1::LeasePromptsResponse work = Work();
    work.mutable_leases(0)->mutable_sampling()->set_temperature(temperature);
    coordinator_.Give(work);
    returned += 2;
    const v1::ReturnedLease back = coordinator_.Returned(returned).back();
    EXPECT_THAT(back.error(), HasSubstr("the model's logits are not finite"));
    EXPECT_FALSE(back.permanent() || back.unavailable()) << "an attempt, as often as a job allows";
  }
}

TEST_F(WorkerTest, APromptThatItIsTooSmallForIsHandedBackForOthers) {
  PolicyLoaderOptions options;
  options.engine.max_tokens = 2;
  coordinator_.Give(Work());
  Start(options);
  const std::vector<v1::ReturnedLease> returned = coordinator_.Returned(2);
  ASSERT_EQ(returned.size(), 2u);
  EXPECT_THAT(returned,
              Each(AllOf(Property(&v1::ReturnedLease::unsuited, true), Property(&v1::ReturnedLease::permanent, true))));
  EXPECT_THAT(returned[0].error(), HasSubstr("raise --max-tokens"));
  EXPECT_EQ(returned[0].needs_cache_bytes(), 0) << "no memory would do";
}

TEST_F(WorkerTest, WhatMemoryItHasForKeysAndValuesIsSaidAndWhatAPromptNeedsOfIt) {
  PolicyLoaderOptions options;
  options.engine.slots = 2;
  options.engine.kv_cache_bytes = 1000;
  coordinator_.Give(Work());
  Start(options);
  const std::vector<v1::ReturnedLease> returned = coordinator_.Returned(2);
  ASSERT_EQ(returned.size(), 2u);
  EXPECT_THAT(returned,
              Each(AllOf(Property(&v1::ReturnedLease::unsuited, true), Property(&v1::ReturnedLease::permanent, true))));
  const int64_t needs = returned[0].needs_cache_bytes();
  EXPECT_GT(needs, 1000);
  // The cache is whole positions.
  const auto model = model::LoadModel(dir_.File("model"));
  ASSERT_TRUE(model.ok()) << model.status();
  const int64_t position = model::KvCache::BytesPerPosition((*model)->config(), (*model)->dtype());
  EXPECT_EQ(needs % position, 0);
  EXPECT_TRUE(coordinator_.SaysCacheBytes(1000 / position * position));
}

}  // namespace
}  // namespace rlhf::rollout
