#include "rlhf/v1/learner_service.grpc.pb.h"

#include <algorithm>
#include <utility>

#include <prometheus/counter.h>

#include "coordinator/grpc_adapter/loop_stream.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kMaxChunkSamples = 256;
constexpr size_t kMaxChunkBytes = 2 << 20;

// Waits for the batch, then writes it in chunks of bounded size. The batch is shared and never changes, so its chunks
// are copied and serialized off the loop.
class BatchStream final : public LoopStream<v1::BatchChunk> {
 public:
  BatchStream(const Edge& edge, Caller caller, v1::NextBatchRequest request)
      : LoopStream(edge), caller_(std::move(caller)), request_(std::move(request)) {}

 private:
  using Batch = std::shared_ptr<const std::vector<v1::Sample>>;

  void Pump() override {
    if (!asked_) {
      asked_ = true;
      return Ask();
    }
    if (batch_ == nullptr) return;
    if (finished_) return End(absl::OkStatus());
    const size_t begin = next_;
    size_t bytes = 0;
    while (next_ < batch_->size() && next_ - begin < kMaxChunkSamples && bytes < kMaxChunkBytes)
      bytes += (*batch_)[next_++].ByteSizeLong();
    finished_ = next_ == batch_->size();
    WriteMade(edge_.batches, [batch = batch_, begin, end = next_, last = finished_] {
      v1::BatchChunk chunk;
      chunk.set_total_samples(static_cast<int64_t>(batch->size()));
      for (size_t i = begin; i < end; ++i) *chunk.add_samples() = (*batch)[i];
      chunk.set_last(last);
      return chunk;
    });
  }
  // Whoever is the last to hold thousands of samples frees them, too.
  void Ended() override {
    if (batch_ != nullptr) edge_.batches->Run([batch = std::exchange(batch_, nullptr)] {});
  }

  void Ask() {
    absl::Status status = edge_.CheckSession(caller_, request_.session_id());
    if (status.ok()) status = edge_.groups->Fence(request_.job_id(), request_.epoch(), request_.session_id());
    if (!status.ok()) return End(status);
    // The answer may come on the store's thread, and long after the client has gone.
    edge_.jobs->NextBatch(request_, [weak = weak_from_this(), loop = edge_.loop](absl::StatusOr<Batch> batch) {
      loop->Post([weak, batch = std::move(batch)]() mutable {
        const auto stream = std::static_pointer_cast<BatchStream>(weak.lock());
        if (stream == nullptr || stream->ended()) return;
        if (!batch.ok()) return stream->End(batch.status());
        stream->batch_ = *std::move(batch);
        stream->Wake();
      });
    });
  }

  const Caller caller_;
  const v1::NextBatchRequest request_;
  bool asked_ = false, finished_ = false;
  Batch batch_;
  size_t next_ = 0;
};

class LearnerService final : public v1::LearnerService::CallbackService {
 public:
  explicit LearnerService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* JoinGroup(grpc::CallbackServerContext* context, const v1::JoinGroupRequest* request,
                                      v1::JoinGroupResponse* response) override {
    return OnLoop(
        edge_, context, request, response,
        [this](const Caller& caller, v1::JoinGroupRequest& r, Done<v1::JoinGroupResponse> done,
               std::function<bool()> gone) {
          absl::Status status = edge_.CheckSession(caller, r.session_id());
          if (!status.ok()) return done(status);
          r.set_wait_ms(BoundedWaitMs(r.wait_ms()));
          edge_.groups->JoinGroup(r, std::move(done), std::move(gone));
        },
        Waits::kYes);
  }
  grpc::ServerUnaryReactor* PublishRendezvous(grpc::CallbackServerContext* context,
                                              const v1::PublishRendezvousRequest* request,
                                              v1::PublishRendezvousResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.groups->PublishRendezvous(r, std::move(done)); });
  }
  grpc::ServerWriteReactor<v1::BatchChunk>* NextBatch(grpc::CallbackServerContext* context,
                                                      const v1::NextBatchRequest* request) override {
    return BatchStream::Run(std::make_shared<BatchStream>(edge_, CallerOf(*context), *request), *context);
  }
  grpc::ServerUnaryReactor* CommitStep(grpc::CallbackServerContext* context, const v1::CommitStepRequest* request,
                                       v1::CommitStepResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->CommitStep(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* RefuseStep(grpc::CallbackServerContext* context, const v1::RefuseStepRequest* request,
                                       v1::RefuseStepResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->RefuseStep(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* GetCommitted(grpc::CallbackServerContext* context, const v1::GetCommittedRequest* request,
                                         v1::GetCommittedResponse* response) override {
    // What is committed in memory may still be on its way to the disk: answered once it is there.
    return OnLoop(edge_, context, request, response,
                  [this](const Caller&, v1::GetCommittedRequest& r, Done<v1::GetCommittedResponse> done) {
                    absl::StatusOr<v1::GetCommittedResponse> committed = edge_.jobs->GetCommitted(r.job_id());
                    if (!committed.ok()) return done(committed.status());
                    edge_.store->Commit(WriteBatch(), [committed = *std::move(committed),
                                                       done = std::move(done)](absl::Status status) mutable {
                      if (!status.ok()) return done(status);
                      done(std::move(committed));
                    });
                  });
  }
  grpc::ServerUnaryReactor* ReportProgress(grpc::CallbackServerContext* context,
                                           const v1::ReportProgressRequest* request,
                                           v1::ReportProgressResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->ReportProgress(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* ReportCheckpoint(grpc::CallbackServerContext* context,
                                             const v1::ReportCheckpointRequest* request,
                                             v1::ReportCheckpointResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->ReportCheckpoint(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* FinishTraining(grpc::CallbackServerContext* context,
                                           const v1::FinishTrainingRequest* request,
                                           v1::FinishTrainingResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->FinishTraining(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* FailTraining(grpc::CallbackServerContext* context, const v1::FailTrainingRequest* request,
                                         v1::FailTrainingResponse* response) override {
    return Fenced(context, request, response,
                  [this](const auto& r, auto done) { edge_.jobs->FailTraining(r, std::move(done)); });
  }

 private:
  void CountFenced() const {
    if (edge_.metrics == nullptr) return;
    edge_.metrics
        ->Counter("rlhf_results_rejected_total", "Results that were not taken, by reason.",
                  {{"reason", v1::ErrorReason_Name(v1::STALE_EPOCH)}})
        .Increment();
  }
  // A call of a member of the job's current group.
  template <typename Request, typename Response, typename Call>
  grpc::ServerUnaryReactor* Fenced(grpc::CallbackServerContext* context, const Request* request, Response* response,
                                   Call call) {
    return OnLoop(edge_, context, request, response,
                  [this, call = std::move(call)](const Caller& caller, Request& r, Done<Response> done) mutable {
                    absl::Status status = edge_.CheckSession(caller, r.session_id());
                    if (status.ok()) {
                      status = edge_.groups->Fence(r.job_id(), r.epoch(), r.session_id());
                      if (!status.ok()) CountFenced();
                    }
                    if (!status.ok()) return done(status);
                    call(r, std::move(done));
                  });
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeLearnerService(const Edge& edge) {
  return std::make_unique<LearnerService>(edge);
}

}  // namespace rlhf::coordinator
