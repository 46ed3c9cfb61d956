// What a WeightsService's streams have in common, whoever serves and reads them: chunks as bytes, so that a tensor's
// data goes from where it lies into gRPC, and from gRPC to where it belongs, without a copy in between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/weights_service.grpc.pb.h"

namespace rlhf::client {

// With its frame and fields within 4 MiB, which is the most that gRPC takes by default.
constexpr uint64_t kWeightsChunkBytes = (4 << 20) - (16 << 10);

struct StreamRange {
  uint64_t begin = 0, end = 0;
};
// The bytes that the request asks for of a stream of `total`. OutOfRange when it begins behind them.
inline absl::StatusOr<StreamRange> RangeOf(const v1::StreamWeightsRequest& request, uint64_t total) {
  if (request.offset() > total) {
    return absl::OutOfRangeError(
        absl::StrCat("offset ", request.offset(), " is beyond the stream's ", total, " bytes"));
  }
  const uint64_t left = total - request.offset();
  const uint64_t size = request.limit() == 0 ? left : std::min<uint64_t>(left, request.limit());
  return StreamRange{request.offset(), request.offset() + size};
}

// A v1::WeightsChunk as it is on the wire. `data` is not copied: it lives, unchanged, as long as its owner, which is
// held until gRPC has sent it.
grpc::ByteBuffer ChunkBuffer(uint64_t offset, absl::Span<const uint8_t> data, std::shared_ptr<const void> owner);

// Calls take(offset in the stream, bytes) for the chunk's data, piece by piece as gRPC has received it; the pieces are
// gone with the buffer. Ends with take's first error; DataLoss when this is no WeightsChunk, or one without data.
absl::Status ReadChunk(grpc::ByteBuffer* chunk,
                       absl::FunctionRef<absl::Status(uint64_t offset, absl::Span<const uint8_t> piece)> take);

// Sends v1::WeightsChunks that ChunkBuffer made.
using WeightsWriter = grpc::ServerWriteReactor<grpc::ByteBuffer>;

// Serves weights: v1::WeightsService, with streams of chunks as bytes.
class WeightsServer : public v1::WeightsService::WithCallbackMethod_GetManifest<
                          v1::WeightsService::WithRawCallbackMethod_StreamWeights<v1::WeightsService::Service>> {
 public:
  // StreamWeights. The writer deletes itself when it is done.
  virtual WeightsWriter* Stream(const v1::StreamWeightsRequest& request) = 0;

 private:
  WeightsWriter* StreamWeights(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) final;
};

// For the listener of a WeightsServer: weights are for rollout workers, and nothing else is served to anybody.
Authorizer AuthorizeWeights(const std::string& trust_domain);

// A stream that ends at once with the status, and deletes itself.
class RefusedWeights final : public WeightsWriter {
 public:
  explicit RefusedWeights(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

// A call of StreamWeights, read by the thread that made it. Context and channel outlive it.
class WeightsReader {
 public:
  WeightsReader(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context,
                const v1::StreamWeightsRequest& request);
  ~WeightsReader();  // after Finish
  WeightsReader(const WeightsReader&) = delete;
  WeightsReader& operator=(const WeightsReader&) = delete;

  bool Read(grpc::ByteBuffer* chunk);  // false: there are no more
  grpc::Status Finish();               // once; waits for the end, which a caller that does not read it up brings about

 private:
  bool Wait();  // for what was begun; whether it succeeded

  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

}  // namespace rlhf::client
