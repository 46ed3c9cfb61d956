// Weights from a publisher to a subscriber over gRPC: whole, as a delta, and what happens when a delta does not fit.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "artifact/artifact_root.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "client/cpp/weights_stream.h"
#include "common/durable_file.h"
#include "common/rpc_server.h"
#include "learner/service/weight_publisher.h"
#include "model/weights_io.h"
#include "rollout_worker/policy_loader.h"
#include "rollout_worker/weight_relay.h"
#include "rollout_worker/weight_subscriber.h"
#include "tests/testing/host_share.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::rollout {
namespace {

// A policy that trains in the type given, its publisher's listener, and a subscriber.
class WeightsTransfer : public testing::TestWithParam<torch::Dtype> {
 protected:
  void SetUp() override {
    MakeTinyModel(dir_.File("model"));
    server_ = ServeOnLoopback({&publisher_});
    ASSERT_NE(server_, nullptr);
    policy_ = Load();
  }

  std::unique_ptr<model::Transformer> Load() const {
    model::LoadOptions load;
    load.dtype = GetParam();
    auto model = model::LoadModel(dir_.File("model"), load);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }

  // Changes every 200th element of each tensor, or all of them.
  static void Change(model::Transformer& model, bool all = false) {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : model.trained_parameters()) {
      torch::Tensor flat = parameter.view({-1});
      flat.slice(0, 0, flat.size(0), all ? 1 : 200).add_(1);
    }
  }

  v1::PolicySource Publish(int64_t step) {
    v1::PolicySource source;
    source.set_job_id("job");
    source.mutable_version()->set_step(step);
    source.mutable_version()->set_lineage(1);
    source.mutable_version()->set_digest(model::WeightsDigest(*policy_));
    source.add_addresses(absl::StrCat("127.0.0.1:", server_->port()));
    const absl::Status staged = publisher_.Stage("job", source.version(), *policy_);
    EXPECT_TRUE(staged.ok()) << staged;
    return source;
  }

  // The model as an artifact: its digest.
  std::string PublishModel() const {
    const auto published = artifact::ArtifactRoot(dir_.File("shared")).Publish(dir_.File("model"));
    EXPECT_TRUE(published.ok()) << published.status();
    return published.ok() ? published->digest : "";
  }
  // Of one slot, for artifacts.
  PolicyLoader Loader(PolicyLoaderOptions options = {}) { return LoaderBy(&subscriber_, std::move(options)); }
  PolicyLoader LoaderBy(WeightSubscriber* subscriber, PolicyLoaderOptions options = {}) {
    options.engine.slots = 1;
    options.dtype = GetParam();
    return PolicyLoader(&artifacts_, subscriber, options);
  }

  FetchedWeights Fetch(const v1::PolicySource& source, const std::string& held) {
    auto weights = subscriber_.Fetch(source, held);
    EXPECT_TRUE(weights.ok()) << weights.status();
    return weights.ok() ? *std::move(weights) : FetchedWeights();
  }

  ScratchDir dir_;
  client::ArtifactCache artifacts_{dir_.File("shared"), dir_.File("private"), nullptr};
  learner::WeightPublisher publisher_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<model::Transformer> policy_;
  static absl::StatusOr<std::shared_ptr<grpc::Channel>> Plain(const std::string& address) {
    client::ChannelOptions options;
    options.address = address;
    options.tls.insecure = true;
    return client::MakeChannel(options);
  }
  WeightSubscriber subscriber_{Plain};
};

TEST_P(WeightsTransfer, TheNewestTwoVersionsAreHeld) {
  const v1::PolicySource first = Publish(1);
  Change(*policy_);
  const v1::PolicySource second = Publish(2);
  EXPECT_TRUE(subscriber_.Fetch(first, "").ok());  // a worker may have been told of it just before
  Change(*policy_);
  const v1::PolicySource third = Publish(3);
  EXPECT_TRUE(absl::IsNotFound(subscriber_.Fetch(first, "").status()));
  EXPECT_TRUE(Fetch(third, second.version().digest()).delta);
  Fetch(second, "");
}

TEST_P(WeightsTransfer, ADeltaEndsInTheBytesOfTheWhole) {
  const auto served = Load(), other = Load();
  const v1::PolicySource first = Publish(1);
  FetchedWeights weights = Fetch(first, "");
  EXPECT_FALSE(weights.delta);
  const size_t whole = weights.bytes.size();
  ASSERT_TRUE(ApplyWeights(std::move(weights), *served).ok());
  ASSERT_EQ(model::WeightsDigest(*served), first.version().digest());

  Change(*policy_);
  const v1::PolicySource second = Publish(2);
  ASSERT_NE(first.version().digest(), second.version().digest());
  weights = Fetch(second, first.version().digest());
  EXPECT_TRUE(weights.delta);
  EXPECT_LT(weights.bytes.size(), whole * 3 / 100);
  const absl::Status applied = ApplyWeights(std::move(weights), *served);
  ASSERT_TRUE(applied.ok()) << applied;
  EXPECT_EQ(model::WeightsDigest(*served), second.version().digest());

  weights = Fetch(second, "");
  EXPECT_FALSE(weights.delta);
  EXPECT_EQ(weights.bytes.size(), whole);
  ASSERT_TRUE(ApplyWeights(std::move(weights), *other).ok());
  EXPECT_EQ(model::WeightsDigest(*other), second.version().digest());
}

TEST_P(WeightsTransfer, ADeltaOfOtherWeightsIsRefusedAndChangesNothing) {
  const auto served = Load();
  const v1::PolicySource first = Publish(1);
  {
    const torch::NoGradGuard no_grad;
    served->trained_parameters().back().second.view({-1})[1].add_(1);  // an element that the delta leaves alone
  }
  const std::string before = model::WeightsDigest(*served);
  Change(*policy_);
  FetchedWeights weights = Fetch(Publish(2), first.version().digest());
  ASSERT_TRUE(weights.delta);
  const absl::Status applied = ApplyWeights(std::move(weights), *served);
  EXPECT_TRUE(absl::IsDataLoss(applied)) << applied;
  EXPECT_EQ(model::WeightsDigest(*served), before);
}

TEST_P(WeightsTransfer, TheMemoryOfAVersionIsForTheNextOneOnceNobodyReadsIt) {
  FetchedWeights first = Fetch(Publish(1), "");
  const uint8_t* const memory = first.bytes.data();
  const std::vector<uint8_t> bytes(first.bytes.begin(), first.bytes.end());
  Change(*policy_, true);
  const v1::PolicySource source = Publish(2);
  FetchedWeights second = Fetch(source, "");
  EXPECT_NE(second.bytes.data(), memory);
  EXPECT_TRUE(first.bytes == absl::MakeConstSpan(bytes)) << "still read";
  const uint8_t* const newer = second.bytes.data();
  second = FetchedWeights();
  second = Fetch(source, "");
  EXPECT_EQ(second.bytes.data(), newer);
  const auto served = Load();
  ASSERT_TRUE(ApplyWeights(second, *served).ok());
  EXPECT_EQ(model::WeightsDigest(*served), source.version().digest());
}

TEST_P(WeightsTransfer, WhereEverythingChangesThereIsNoDelta) {
  const v1::PolicySource first = Publish(1);
  Change(*policy_, true);
  const FetchedWeights weights = Fetch(Publish(2), first.version().digest());
  EXPECT_FALSE(weights.delta);
  EXPECT_FALSE(weights.manifest.has_delta());
}

TEST_P(WeightsTransfer, TheLoaderTakesDeltasOfWhatItsEngineHas) {
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  PolicyLoader loader = Loader();
  int64_t seen = 0;
  // Bytes received for the version, which the engine must then have.
  const auto take_up = [&](v1::PolicySource source) {
    source.set_artifact(model);
    const absl::Status switched = loader.Switch(source);
    EXPECT_TRUE(switched.ok()) << switched;
    EXPECT_EQ(model::WeightsDigest(loader.engine()->model()), source.version().digest());
    const int64_t before = std::exchange(seen, loader.counters().bytes);
    return loader.counters().bytes - before;
  };
  const int64_t whole = take_up(Publish(1));
  Change(*policy_);
  EXPECT_LT(take_up(Publish(2)), whole * 3 / 100);

  Change(*policy_);
  v1::PolicySource third = Publish(3);
  third.set_artifact(model);
  loader.Prefetch(third);  // a delta from 2, which the engine has
  EXPECT_LT(take_up(third), whole * 3 / 100);

  Change(*policy_);
  Publish(4);
  Change(*policy_);
  EXPECT_EQ(take_up(Publish(5)), whole);  // its delta is from 4
}

TEST_P(WeightsTransfer, AVersionThatIsOnItsWayIsNotFetchedTwice) {
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  std::atomic<int> fetches{0};
  absl::Notification first, second;
  WeightSubscriber subscriber([&](const std::string& address) {
    if (const int fetch = ++fetches; fetch == 1) {
      first.Notify();
      second.WaitForNotificationWithTimeout(absl::Milliseconds(300));
    } else if (fetch == 2) {
      second.Notify();
    }
    return Plain(address);
  });
  PolicyLoader loader = LoaderBy(&subscriber);
  Change(*policy_);
  v1::PolicySource source = Publish(1);
  source.set_artifact(model);
  std::thread leases([&] {
    loader.Prefetch(source);
    loader.Prefetch(source);
  });
  first.WaitForNotification();
  const absl::Status switched = loader.Switch(source);
  leases.join();
  EXPECT_TRUE(switched.ok()) << switched;
  EXPECT_EQ(model::WeightsDigest(loader.engine()->model()), source.version().digest());
  EXPECT_EQ(fetches, 1);
}

TEST_P(WeightsTransfer, WhatDoesNotArriveIsAskedForOnceALease) {
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  int fetches = 0;
  WeightSubscriber subscriber([&](const std::string& address) {
    ++fetches;
    return Plain(address);
  });
  PolicyLoader loader = LoaderBy(&subscriber);
  Change(*policy_);
  v1::PolicySource source = Publish(1);
  source.set_artifact(model);
  source.mutable_version()->set_step(7);  // not there yet
  for (int lease = 1; lease <= 2; ++lease) {
    loader.Prefetch(source);
    EXPECT_FALSE(loader.Switch(source).ok());
    EXPECT_EQ(fetches, lease);
  }
}

TEST_P(WeightsTransfer, VersionZeroIsTheArtifactAgainWhateverCameBetween) {
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  PolicyLoader loader = Loader();
  const std::string artifacts_own = model::WeightsDigest(*policy_);
  Change(*policy_);
  v1::PolicySource trained = Publish(1);
  trained.set_artifact(model);
  ASSERT_TRUE(loader.Switch(trained).ok());
  ASSERT_EQ(model::WeightsDigest(loader.engine()->model()), trained.version().digest());
  // Another job begins with the model that the first one trained from.
  v1::PolicySource fresh;
  fresh.set_job_id("another job");
  fresh.set_artifact(model);
  EXPECT_FALSE(loader.Serves(fresh));
  EXPECT_FALSE(loader.CanSwitchInPlace(fresh));
  ASSERT_TRUE(loader.Switch(fresh).ok());
  EXPECT_EQ(model::WeightsDigest(loader.engine()->model()), artifacts_own);
  EXPECT_EQ(loader.engine()->version().step(), 0);
  const int64_t loads = loader.counters().loads;
  fresh.set_job_id("a third one");
  EXPECT_TRUE(loader.Serves(fresh)) << "version 0 is the artifact itself";
  ASSERT_TRUE(loader.Switch(fresh).ok());
  EXPECT_EQ(loader.counters().loads, loads);
}

TEST_P(WeightsTransfer, WeightsChangeUnderRunningSamplesOfTheirOwnJobAlone) {
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  PolicyLoader loader = Loader();
  v1::PolicySource source;
  source.set_job_id("job");
  source.set_artifact(model);
  source.mutable_version()->set_step(1);
  v1::PolicySource of_another = source;
  of_another.set_job_id("another job");
  for (const bool deterministic : {false, true}) {
    if (deterministic && GetParam() != torch::kFloat32) continue;
    source.set_deterministic(deterministic);
    of_another.set_deterministic(deterministic);
    v1::PolicySource first = source;
    first.mutable_version()->set_step(0);
    EXPECT_FALSE(loader.CanSwitchInPlace(source)) << "another model";
    ASSERT_TRUE(loader.Switch(first).ok());
    EXPECT_TRUE(loader.CanSwitchInPlace(source)) << "nothing runs";
    EXPECT_TRUE(loader.CanSwitchInPlace(of_another));
    v1::PromptLease lease;
    lease.set_job_id("job");
    lease.mutable_prompt()->set_text("the cat");
    lease.add_samples();
    ASSERT_TRUE(loader.engine()->Add(lease).ok());
    EXPECT_EQ(loader.CanSwitchInPlace(source), !deterministic);
    EXPECT_FALSE(loader.CanSwitchInPlace(of_another)) << "its samples would be partly of the other's policy";
    EXPECT_TRUE(loader.CanSwitchInPlace(first)) << "it is there";
  }
}

// What int8 weights were made from is not kept: there is nothing to change elements of.
TEST_P(WeightsTransfer, AWorkerOfInt8WeightsTakesEveryVersionWhole) {
  if (GetParam() != torch::kFloat32) return;
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  PolicyLoaderOptions options;
  options.int8 = true;
  PolicyLoader loader = Loader(options);
  int64_t before = 0;
  for (int64_t step = 1; step <= 2; ++step) {
    Change(*policy_);
    v1::PolicySource source = Publish(step);
    source.set_artifact(model);
    const absl::Status switched = loader.Switch(source);
    ASSERT_TRUE(switched.ok()) << switched;
    EXPECT_EQ(loader.counters().bytes, step * static_cast<int64_t>(Fetch(source, "").bytes.size()));
    EXPECT_GT(loader.counters().bytes, before);
    before = loader.counters().bytes;
  }
}

TEST_P(WeightsTransfer, AdaptersCountAsTheyDoAtTheLearner) {
  if (GetParam() != torch::kFloat32) return;
  const std::string model = PublishModel();
  ASSERT_NE(model, "");
  PolicyLoader loader = Loader();
  const model::PackedBatch batch = model::PackedBatch::FromSequences({{1, 7, 30, 100}});
  const torch::NoGradGuard no_grad;
  const torch::Tensor base = policy_->Hidden(batch);
  // Where nothing is said of alpha, it is the rank.
  for (const double alpha : {12.0, 4.0}) {
    policy_ = Load();
    ASSERT_TRUE(policy_->AttachLora({.rank = 4, .alpha = alpha, .target_modules = {"q_proj", "v_proj"}}, 1).ok());
    for (const auto& [name, parameter] : policy_->trained_parameters()) torch::Tensor(parameter).fill_(0.05);
    v1::PolicySource source = Publish(static_cast<int64_t>(alpha));
    source.set_artifact(model);
    source.mutable_lora()->set_rank(4);
    if (alpha != 4) source.mutable_lora()->set_alpha(alpha);
    for (const char* module : {"q_proj", "v_proj"}) source.mutable_lora()->add_target_modules(module);
    const absl::Status switched = loader.Switch(source);
    ASSERT_TRUE(switched.ok()) << switched;
    const torch::Tensor expected = policy_->Hidden(batch), found = loader.engine()->model().Hidden(batch);
    EXPECT_GT((expected - base).abs().max().item<double>(), 1e-2) << "the adapters change nothing";
    EXPECT_LT((found - expected).abs().max().item<double>(), 1e-5) << "alpha " << alpha;
  }
}

// A learner that shares its versions on this host, in a folder of the test's.
class SharedWeights : public WeightsTransfer {
 protected:
  void SetUp() override {
    WeightsTransfer::SetUp();
    ASSERT_TRUE(std::filesystem::create_directory(shm_));
    sharing_ = std::make_unique<learner::WeightPublisher>(shm_);
    sharing_server_ = ServeOnLoopback({sharing_.get()});
    ASSERT_NE(sharing_server_, nullptr);
  }
  v1::PolicySource Share(int64_t step) {
    v1::PolicySource source = Publish(step);
    source.set_addresses(0, absl::StrCat("127.0.0.1:", sharing_server_->port()));
    const absl::Status staged = sharing_->Stage("job", source.version(), *policy_);
    EXPECT_TRUE(staged.ok()) << staged;
    return source;
  }
  std::vector<std::filesystem::path> Files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(shm_)) files.push_back(entry.path());
    return files;
  }
  // gRPC lets go of what it has sent on a thread of its own.
  void ExpectFiles(size_t count) const {
    const absl::Time patience = absl::Now() + absl::Seconds(10);
    while (Files().size() != count && absl::Now() < patience) std::this_thread::yield();
    EXPECT_EQ(Files().size(), count);
  }
  // What comes is the version, however it comes.
  void ExpectVersion(const absl::StatusOr<FetchedWeights>& weights, const v1::PolicySource& source, bool mapped) const {
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->mapped, mapped);
    EXPECT_EQ(weights->not_mapped, !mapped);
    const auto served = Load();
    const absl::Status applied = ApplyWeights(*weights, *served);
    ASSERT_TRUE(applied.ok()) << applied;
    EXPECT_EQ(model::WeightsDigest(*served), source.version().digest());
  }

  const std::string shm_ = dir_.File("shm");
  std::unique_ptr<learner::WeightPublisher> sharing_;
  std::unique_ptr<RpcServer> sharing_server_;
  WeightSubscriber mapping_{Plain, {.shm_dir = shm_}};
};

TEST_P(SharedWeights, AreTheBytesThatTheNetworkBringsAndLeaveNoFile) {
  const v1::PolicySource first = Share(1);
  ASSERT_EQ(Files().size(), 1u);
  const auto mapped = mapping_.Fetch(first);
  ExpectVersion(mapped, first, /*mapped=*/true);
  auto received = subscriber_.Fetch(first);
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_FALSE(received->mapped);
  EXPECT_TRUE(received->bytes == mapped->bytes);
  // A delta is the smaller still, where there is one.
  Change(*policy_);
  const auto delta = mapping_.Fetch(Share(2), first.version().digest());
  ASSERT_TRUE(delta.ok()) << delta.status();
  EXPECT_TRUE(delta->delta);
  EXPECT_FALSE(delta->mapped);
  // A version that is superseded takes its file with it; so does the learner's end. What was mapped stays readable.
  for (int64_t step = 3; step < 6; ++step) Share(step);
  ExpectFiles(2);
  sharing_server_->Shutdown(absl::Seconds(5));
  sharing_.reset();
  ExpectFiles(0);
  ExpectVersion(mapped, first, /*mapped=*/true);
}

TEST_P(SharedWeights, WhatIsDamagedOrElsewhereIsReceivedInstead) {
  const v1::PolicySource source = Share(1);
  const std::filesystem::path file = Files().at(0);
  const auto replace = [&](const std::string& content) {
    std::filesystem::remove(file);
    std::ofstream(file, std::ios::binary) << content;
    std::filesystem::permissions(file, std::filesystem::perms::owner_read);
  };
  const std::string whole = *ReadFile(file.string());
  replace(whole);
  ExpectVersion(mapping_.Fetch(source), source, /*mapped=*/true);
  std::string damaged = whole;
  damaged[damaged.size() / 2] ^= 1;
  replace(damaged);
  ExpectVersion(mapping_.Fetch(source), source, /*mapped=*/false);
  replace(whole.substr(0, whole.size() / 2));
  ExpectVersion(mapping_.Fetch(source), source, /*mapped=*/false);
  std::filesystem::remove(file);
  ExpectVersion(mapping_.Fetch(source), source, /*mapped=*/false);
}

TEST_P(SharedWeights, WithoutRoomTheLearnerServesByTheNetworkAlone) {
  learner::WeightPublisher nowhere(dir_.File("there is no such folder"));
  const auto server = ServeOnLoopback({&nowhere});
  v1::PolicySource source = Publish(1);
  source.set_addresses(0, absl::StrCat("127.0.0.1:", server->port()));
  ASSERT_TRUE(nowhere.Stage("job", source.version(), *policy_).ok());
  const auto weights = mapping_.Fetch(source);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_FALSE(weights->mapped);
  EXPECT_FALSE(weights->not_mapped) << "nothing was promised";
}

// A learner that shares its versions on its device, for which the host stands.
class DeviceWeights : public WeightsTransfer {
 protected:
  void SetUp() override {
    WeightsTransfer::SetUp();
    Restart();
  }
  void Restart() {
    sharing_server_.reset();
    sharing_ = std::make_unique<learner::WeightPublisher>("", /*on_device=*/true, gpu_.allocator());
    sharing_server_ = ServeOnLoopback({sharing_.get()});
    ASSERT_NE(sharing_server_, nullptr);
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", sharing_server_->port()); }
  v1::PolicySource Share(int64_t step) {
    v1::PolicySource source = Publish(step);
    source.set_addresses(0, address());
    const absl::Status staged = sharing_->Stage("job", source.version(), *policy_);
    EXPECT_TRUE(staged.ok()) << staged;
    return source;
  }
  // Another job's, whose copy needs more memory.
  void ShareLarger() {
    const auto larger = model::LoadModel(dir_.File("model"));
    ASSERT_TRUE(larger.ok()) << larger.status();
    v1::PolicyVersion version;
    version.set_digest("of another job");
    ASSERT_TRUE(sharing_->Stage("other job", version, **larger).ok());
  }
  // gRPC notices on a thread of its own that a call has ended.
  void ExpectAlive(size_t count) const {
    const absl::Time patience = absl::Now() + absl::Seconds(10);
    while (gpu_.alive() != count && absl::Now() < patience) std::this_thread::yield();
    EXPECT_EQ(gpu_.alive(), count);
  }
  void ExpectVersion(const absl::StatusOr<FetchedWeights>& weights, const v1::PolicySource& source, bool taken) const {
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->mapped, taken);
    const auto served = Load();
    const absl::Status applied = ApplyWeights(*weights, *served);
    ASSERT_TRUE(applied.ok()) << applied;
    EXPECT_EQ(model::WeightsDigest(*served), source.version().digest());
  }

  HostShare gpu_;
  std::function<void()> meanwhile_;  // between the beginning of a copy and its end
  std::unique_ptr<learner::WeightPublisher> sharing_;
  std::unique_ptr<RpcServer> sharing_server_;
  WeightSubscriber taking_{Plain,
                           {.take_shared = [this](const model::DeviceShareName& name, uint64_t size, torch::Device) {
                             if (meanwhile_) meanwhile_();
                             return gpu_.Take(name, size);
                           }}};
};

TEST_P(DeviceWeights, StayWhileTheyAreCopied) {
  const v1::PolicySource first = Share(1);
  ExpectVersion(taking_.Fetch(first), first, /*taken=*/true);
  EXPECT_EQ(gpu_.alive(), 1U);
  meanwhile_ = [this] {
    ShareLarger();
    EXPECT_EQ(gpu_.alive(), 2U);
  };
  ExpectVersion(taking_.Fetch(first), first, /*taken=*/true);
  ExpectAlive(1);
}

TEST_P(DeviceWeights, ThatAreReplacedMeanwhileComeOverTheNetwork) {
  const v1::PolicySource first = Share(1);
  Change(*policy_);
  v1::PolicySource second;
  meanwhile_ = [&] { second = Share(2); };
  ExpectVersion(taking_.Fetch(first), first, /*taken=*/false);
  meanwhile_ = nullptr;
  ExpectVersion(taking_.Fetch(second), second, /*taken=*/true);
}

TEST_P(DeviceWeights, AreHeldForNobodyWhoIsGone) {
  const auto hold = [](const std::string& address, grpc::ClientContext* context, uint64_t generation) {
    v1::StreamWeightsRequest request;
    request.set_job_id("job");
    request.set_device_generation(generation);
    return std::make_unique<client::WeightsReader>(*Plain(address), context, request);
  };
  grpc::ByteBuffer chunk;
  for (const bool cancels : {true, false}) {
    Restart();
    Share(1);
    // One ends its call; of the other nothing is heard until its deadline has passed.
    const auto context = client::MakeContext(cancels ? absl::Seconds(60) : absl::Seconds(1));
    const auto reader = hold(address(), context.get(), 1);
    ASSERT_TRUE(reader->Read(&chunk));
    ShareLarger();
    EXPECT_EQ(gpu_.alive(), 2U);
    if (cancels) context->TryCancel();
    ExpectAlive(1);
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_FALSE(reader->Finish().ok());
  }
  const auto refused = client::MakeContext(absl::Seconds(60));
  const auto replaced = hold(address(), refused.get(), 1);
  EXPECT_FALSE(replaced->Read(&chunk));
  EXPECT_EQ(replaced->Finish().error_code(), grpc::StatusCode::NOT_FOUND);
  WeightRelay relay;
  const auto worker = ServeOnLoopback({&relay});
  const auto asked = client::MakeContext(absl::Seconds(60));
  const auto of_a_worker = hold(absl::StrCat("127.0.0.1:", worker->port()), asked.get(), 1);
  EXPECT_FALSE(of_a_worker->Read(&chunk));
  EXPECT_EQ(of_a_worker->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

INSTANTIATE_TEST_SUITE_P(Types, DeviceWeights, testing::Values(torch::kBFloat16),
                         [](const auto& /*param*/) { return "bfloat16"; });

INSTANTIATE_TEST_SUITE_P(Types, SharedWeights, testing::Values(torch::kBFloat16),
                         [](const auto& /*param*/) { return "bfloat16"; });

INSTANTIATE_TEST_SUITE_P(Types, WeightsTransfer, testing::Values(torch::kFloat32, torch::kBFloat16),
                         [](const auto& param) { return param.param == torch::kFloat32 ? "float32" : "bfloat16"; });

}  // namespace
}  // namespace rlhf::rollout
