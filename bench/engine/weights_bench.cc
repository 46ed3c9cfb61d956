#include "bench/engine/weights_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "artifact/weight_delta.h"
#include "client/cpp/channel.h"
#include "client/cpp/weights_stream.h"
#include "common/durable_file.h"
#include "common/fleet_names.h"
#include "common/rpc_server.h"
#include "common/shared_memory.h"
#include "common/status_util.h"
#include "common/tls.h"
#include "learner/service/weight_publisher.h"
#include "model/guard.h"
#include "model/weights_io.h"
#include "rollout_worker/weight_subscriber.h"

namespace rlhf::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kLearningRate = 1e-6;
constexpr size_t kMessageBytes = client::kWeightsChunkBytes;

absl::StatusOr<double> Seconds(const std::function<absl::Status()>& work) {
  const auto start = Clock::now();
  RLHF_RETURN_IF_ERROR(work());
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Sends so many bytes in messages of the publisher's size, which are made once: what gRPC alone can do.
class BareStreams : public v1::WeightsService::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::WeightsChunk>* StreamWeights(grpc::CallbackServerContext* /*context*/,
                                                            const v1::StreamWeightsRequest* request) override {
    class Sender : public grpc::ServerWriteReactor<v1::WeightsChunk> {
     public:
      explicit Sender(uint64_t bytes) : left_((bytes + kMessageBytes - 1) / kMessageBytes) {
        chunk_.set_data(std::string(kMessageBytes, 'w'));
        OnWriteDone(true);
      }
      void OnWriteDone(bool ok) override {
        if (!ok || left_-- == 0) {
          Finish(grpc::Status::OK);
        } else {
          StartWrite(&chunk_);
        }
      }
      void OnDone() override { delete this; }

     private:
      uint64_t left_;
      v1::WeightsChunk chunk_;
    };
    return new Sender(request->limit());
  }
};

absl::StatusOr<TlsFiles> MakeCertificates(const std::string& dir) {
  RLHF_ASSIGN_OR_RETURN(const CertificateAuthority ca, MakeCertificateAuthority("bench", 1));
  RLHF_ASSIGN_OR_RETURN(const IssuedCertificate issued, IssueCertificate(ca, "bench", "learner", "learner-0", {}, 1));
  const TlsFiles files = {.ca_file = dir + "/ca.pem", .cert_file = dir + "/cert.pem", .key_file = dir + "/key.pem"};
  RLHF_RETURN_IF_ERROR(WriteFileDurably(files.ca_file, ca.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(files.cert_file, issued.cert_pem));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(files.key_file, issued.key_pem));
  return files;
}

absl::StatusOr<std::unique_ptr<RpcServer>> Serve(grpc::Service* service, const TlsFiles& tls) {
  RpcServerOptions options;
  options.address = "127.0.0.1:0";
  options.tls = tls;
  options.require_client_certificate = !tls.insecure;
  options.authorizer = [](const std::string&, const std::string&, const std::string&) { return Caller(); };
  options.services = {service};
  return RpcServer::Start(options);
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> Connect(const std::string& address, const TlsFiles& tls) {
  client::ChannelOptions options;
  options.address = address;
  options.tls = tls;
  if (!tls.insecure) options.server_name = FleetServerName("");
  return client::MakeChannel(options);
}

std::string AddressOf(const RpcServer& server) {
  return absl::StrCat("127.0.0.1:", server.port());
}

absl::Status ReadBare(v1::WeightsService::Stub* stub, uint64_t bytes) {
  v1::StreamWeightsRequest request;
  request.set_limit(bytes);
  const auto context = client::MakeContext(absl::Seconds(60));
  const auto reader = stub->StreamWeights(context.get(), request);
  v1::WeightsChunk chunk;
  uint64_t received = 0;
  while (reader->Read(&chunk)) received += chunk.data().size();
  RLHF_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return received >= bytes ? absl::OkStatus() : absl::DataLossError("the bare stream ended early");
}

// A trained policy and its publisher.
class Policy {
 public:
  absl::Status Load(const std::string& dir) {
    RLHF_ASSIGN_OR_RETURN(masters_, model::LoadModel(dir));
    model::LoadOptions bfloat16;
    bfloat16.dtype = torch::kBFloat16;
    RLHF_ASSIGN_OR_RETURN(model_, model::LoadModel(dir, bfloat16));
    CastMasters();
    return absl::OkStatus();
  }

  // What AdamW's first step does to float32 masters: each moves by the learning rate, up or down.
  void Update() {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : masters_->trained_parameters()) {
      torch::Tensor target = parameter;
      target.add_(torch::randn_like(parameter).sign_(), -kLearningRate);
    }
    CastMasters();
  }

  absl::StatusOr<v1::PolicySource> Publish(learner::WeightPublisher* publisher, int64_t step, bool float32) const {
    const model::Transformer& model = float32 ? *masters_ : *model_;
    v1::PolicySource source;
    source.set_job_id(float32 ? "float32" : "bfloat16");
    source.mutable_version()->set_step(step);
    source.mutable_version()->set_lineage(1);
    source.mutable_version()->set_digest(model::WeightsDigest(model));
    RLHF_RETURN_IF_ERROR(publisher->Stage(source.job_id(), source.version(), model));
    return source;
  }
  const model::Transformer& masters() const { return *masters_; }
  const model::Transformer& model() const { return *model_; }

 private:
  void CastMasters() {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < masters_->trained_parameters().size(); ++i) {
      torch::Tensor target = model_->trained_parameters()[i].second;
      target.copy_(masters_->trained_parameters()[i].second);
    }
  }
  std::unique_ptr<model::Transformer> masters_, model_;
};

std::vector<uint8_t> BytesOf(const model::Transformer& model) {
  std::vector<uint8_t> bytes;
  for (const auto& [name, parameter] : model.trained_parameters()) {
    const auto* data = static_cast<const uint8_t*>(parameter.data_ptr());
    bytes.insert(bytes.end(), data, data + parameter.nbytes());
  }
  return bytes;
}

class Measurement {
 public:
  explicit Measurement(int rounds) : rounds_(rounds) {}

  // `work` moves so many bytes.
  void Add(const std::string& name, size_t bytes, std::function<absl::Status()> work) {
    works_.push_back({name, bytes, std::move(work)});
  }

  // All in turn, once more than `rounds`, for the first run warms; the median rate of each, in GB/s.
  absl::StatusOr<nlohmann::ordered_json> Run() {
    std::map<std::string, std::vector<double>> rates;
    for (int round = 0; round <= rounds_; ++round) {
      for (const Work& work : works_) {
        RLHF_ASSIGN_OR_RETURN(const double seconds, Seconds(work.work));
        if (round > 0) rates[work.name].push_back(static_cast<double>(work.bytes) / seconds / 1e9);
      }
    }
    nlohmann::ordered_json out;
    for (const Work& work : works_) {
      std::vector<double>& all = rates[work.name];
      std::sort(all.begin(), all.end());
      out[work.name] = all[all.size() / 2];
    }
    return out;
  }

 private:
  struct Work {
    std::string name;
    size_t bytes;
    std::function<absl::Status()> work;
  };
  int rounds_;
  std::vector<Work> works_;
};

absl::StatusOr<nlohmann::ordered_json> Measure(const std::string& model_dir, int rounds, const std::string& scratch) {
  RLHF_ASSIGN_OR_RETURN(const TlsFiles certificates, MakeCertificates(scratch));
  const TlsFiles plain = {.insecure = true};
  learner::WeightPublisher publisher, changing;  // each keeps the newest two
  BareStreams bare;
  RLHF_ASSIGN_OR_RETURN(const auto bare_server, Serve(&bare, plain));
  RLHF_ASSIGN_OR_RETURN(const auto server, Serve(&publisher, plain));
  RLHF_ASSIGN_OR_RETURN(const auto tls_server, Serve(&publisher, certificates));
  RLHF_ASSIGN_OR_RETURN(const auto changing_server, Serve(&changing, plain));
  // Channels are kept: the handshake is not what is measured.
  RLHF_ASSIGN_OR_RETURN(const auto bare_channel, Connect(AddressOf(*bare_server), plain));
  RLHF_ASSIGN_OR_RETURN(const auto channel, Connect(AddressOf(*server), plain));
  RLHF_ASSIGN_OR_RETURN(const auto tls_channel, Connect(AddressOf(*tls_server), certificates));
  RLHF_ASSIGN_OR_RETURN(const auto changing_channel, Connect(AddressOf(*changing_server), plain));
  const auto bare_stub = v1::WeightsService::NewStub(bare_channel);
  rollout::WeightSubscriber subscriber([&](const std::string&) { return channel; });
  rollout::WeightSubscriber following([&](const std::string&) { return changing_channel; });
  rollout::WeightSubscriber tls_subscriber([&](const std::string&) { return tls_channel; });

  Policy policy;
  RLHF_RETURN_IF_ERROR(policy.Load(model_dir));
  RLHF_ASSIGN_OR_RETURN(v1::PolicySource whole, policy.Publish(&publisher, 1, true));
  whole.add_addresses("in the factories");
  RLHF_ASSIGN_OR_RETURN(const v1::PolicySource before, policy.Publish(&changing, 1, false));
  const std::vector<uint8_t> from = BytesOf(policy.model());
  model::LoadOptions bfloat16;
  bfloat16.dtype = torch::kBFloat16;
  RLHF_ASSIGN_OR_RETURN(const auto float32_served, model::LoadModel(model_dir));
  RLHF_ASSIGN_OR_RETURN(const auto served, model::LoadModel(model_dir, bfloat16));
  const size_t bytes = BytesOf(policy.masters()).size();
  policy.Update();
  const std::vector<uint8_t> to = BytesOf(policy.model());
  RLHF_ASSIGN_OR_RETURN(v1::PolicySource after, policy.Publish(&changing, 2, false));
  after.add_addresses("in the factories");
  const std::string shm_dir = SharedMemoryDirOf("");
  learner::WeightPublisher sharing(shm_dir);
  RLHF_ASSIGN_OR_RETURN(const auto sharing_server, Serve(&sharing, plain));
  RLHF_ASSIGN_OR_RETURN(const auto sharing_channel, Connect(AddressOf(*sharing_server), plain));
  rollout::WeightSubscriber mapping([&](const std::string&) { return sharing_channel; }, {.shm_dir = shm_dir});
  RLHF_ASSIGN_OR_RETURN(v1::PolicySource shared, policy.Publish(&sharing, 1, true));
  shared.add_addresses("in the factories");
  RLHF_ASSIGN_OR_RETURN(const rollout::FetchedWeights mapped, mapping.Fetch(shared));
  std::vector<uint8_t> delta;
  RLHF_ASSIGN_OR_RETURN(const rollout::FetchedWeights update, following.Fetch(after, before.version().digest()));
  if (!update.delta) return absl::InternalError("expected a delta in bfloat16, was sent the whole version");

  Measurement measurement(rounds);
  std::vector<uint8_t> source(bytes, 1), target(bytes, 2);
  measurement.Add("memcpy", bytes, [&] {
    std::memcpy(target.data(), source.data(), bytes);
    return absl::OkStatus();
  });
  measurement.Add("bare_stream", bytes, [&] { return ReadBare(bare_stub.get(), bytes); });
  measurement.Add("fetch", bytes, [&] { return subscriber.Fetch(whole).status(); });
  measurement.Add("fetch_tls", bytes, [&] { return tls_subscriber.Fetch(whole).status(); });
  measurement.Add("fetch_and_apply", bytes, [&]() -> absl::Status {
    RLHF_ASSIGN_OR_RETURN(rollout::FetchedWeights weights, subscriber.Fetch(whole));
    return rollout::ApplyWeights(std::move(weights), *float32_served);
  });
  if (mapped.mapped) {  // else there is no such memory, or no room in it
    measurement.Add("map", bytes, [&] { return mapping.Fetch(shared).status(); });
    measurement.Add("map_and_apply", bytes, [&]() -> absl::Status {
      RLHF_ASSIGN_OR_RETURN(const rollout::FetchedWeights weights, mapping.Fetch(shared));
      return rollout::ApplyWeights(weights, *float32_served);
    });
  }
  measurement.Add("delta_encode", to.size(), [&] {
    delta.clear();
    return artifact::EncodeWeightDelta(from, to, 2, to.size(), &delta)
               ? absl::OkStatus()
               : absl::InternalError("the delta is as large as the whole");
  });
  // Forth and back again, so that the next round finds it as this one did.
  std::vector<uint8_t> held = from;
  measurement.Add("delta_apply", 2 * to.size(), [&]() -> absl::Status {
    RLHF_RETURN_IF_ERROR(artifact::SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(held)));
    return artifact::SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(held));
  });
  RLHF_ASSIGN_OR_RETURN(nlohmann::ordered_json out, measurement.Run());
  RLHF_RETURN_IF_ERROR(rollout::ApplyWeights(update, *served));
  if (model::WeightsDigest(*served) != after.version().digest())
    return absl::InternalError("the delta did not end in the version's weights");
  out["bytes"] = bytes;
  out["delta_share"] = static_cast<double>(update.bytes.size()) / static_cast<double>(to.size());
  return out;
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> MeasureWeights(const std::string& model_dir, int rounds) {
  std::string scratch = std::filesystem::temp_directory_path() / "rlhf-bench-XXXXXX";
  if (mkdtemp(scratch.data()) == nullptr)
    return absl::InternalError(absl::StrCat("cannot make a folder like ", scratch));
  const absl::Cleanup remove = [&] {
    std::error_code ignored;
    std::filesystem::remove_all(scratch, ignored);
  };
  absl::StatusOr<nlohmann::ordered_json> out = absl::UnknownError("not run");
  RLHF_RETURN_IF_ERROR(model::Guard("weights", [&]() -> absl::Status {
    out = Measure(model_dir, rounds, scratch);
    return out.status();
  }));
  return out;
}

}  // namespace rlhf::bench
