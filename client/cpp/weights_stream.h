// What a WeightsService's streams have in common, whoever serves them.
#pragma once

#include <algorithm>
#include <cstdint>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "rlhf/v1/weights_service.pb.h"

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

// A stream that ends at once with the status, and deletes itself.
class RefusedWeights final : public grpc::ServerWriteReactor<v1::WeightsChunk> {
 public:
  explicit RefusedWeights(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace rlhf::client
