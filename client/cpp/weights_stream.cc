#include "client/cpp/weights_stream.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <iterator>
#include <utility>

#include "common/fleet_authorizer.h"

namespace rlhf::client {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint32_t kOffsetTag =
    WireFormatLite::MakeTag(v1::WeightsChunk::kOffsetFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kDataTag =
    WireFormatLite::MakeTag(v1::WeightsChunk::kDataFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

constexpr char kMethod[] = "/rlhf.v1.WeightsService/StreamWeights";

absl::Status NotAChunk() {
  return absl::DataLossError("weights stream: expected a WeightsChunk with data, found other bytes");
}

}  // namespace

grpc::ByteBuffer ChunkBuffer(uint64_t offset, absl::Span<const uint8_t> data, std::shared_ptr<const void> owner) {
  constexpr size_t kMostVarint = 10, kMostTag = 5;
  uint8_t head[2 * (kMostTag + kMostVarint)];
  uint8_t* end = CodedOutputStream::WriteTagToArray(kOffsetTag, head);
  end = CodedOutputStream::WriteVarint64ToArray(offset, end);
  end = CodedOutputStream::WriteTagToArray(kDataTag, end);
  end = CodedOutputStream::WriteVarint64ToArray(data.size(), end);
  // gRPC only reads slices that it sends.
  auto* const bytes = const_cast<uint8_t*>(data.data());  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  auto* const held = new std::shared_ptr<const void>(std::move(owner));
  const grpc::Slice slices[] = {
      grpc::Slice(head, static_cast<size_t>(end - head)),
      grpc::Slice(
          bytes, data.size(), [](void* owner_held) { delete static_cast<std::shared_ptr<const void>*>(owner_held); },
          held)};
  return {slices, std::size(slices)};
}

absl::Status ReadChunk(grpc::ByteBuffer* chunk,
                       absl::FunctionRef<absl::Status(uint64_t offset, absl::Span<const uint8_t> piece)> take) {
  grpc::ProtoBufferReader buffer(chunk);
  if (!buffer.status().ok()) return NotAChunk();
  CodedInputStream in(&buffer);
  uint64_t offset = 0;
  bool any = false;
  while (const uint32_t tag = in.ReadTag()) {
    if (tag == kOffsetTag && !any) {
      if (!in.ReadVarint64(&offset)) return NotAChunk();
      continue;
    }
    if (tag != kDataTag) {
      if (!WireFormatLite::SkipField(&in, tag)) return NotAChunk();
      continue;
    }
    uint32_t left = 0;
    if (any || !in.ReadVarint32(&left)) return NotAChunk();
    while (left > 0) {
      const void* bytes = nullptr;
      int size = 0;
      if (!in.GetDirectBufferPointer(&bytes, &size)) return NotAChunk();
      size = static_cast<int>(std::min<uint32_t>(static_cast<uint32_t>(size), left));
      any = true;
      RLHF_RETURN_IF_ERROR(
          take(offset, absl::MakeConstSpan(static_cast<const uint8_t*>(bytes), static_cast<size_t>(size))));
      offset += static_cast<uint64_t>(size);
      left -= static_cast<uint32_t>(size);
      in.Skip(size);
    }
  }
  return any && in.ConsumedEntireMessage() ? absl::OkStatus() : NotAChunk();
}

WeightsWriter* WeightsServer::StreamWeights(grpc::CallbackServerContext* /*context*/, const grpc::ByteBuffer* request) {
  grpc::ByteBuffer bytes = *request;
  v1::StreamWeightsRequest parsed;
  const grpc::Status status = grpc::SerializationTraits<v1::StreamWeightsRequest>::Deserialize(&bytes, &parsed);
  if (!status.ok()) return new RefusedWeights(absl::InvalidArgumentError("expected a StreamWeightsRequest"));
  return Stream(parsed);
}

Authorizer AuthorizeWeights(const std::string& trust_domain) {
  return AuthorizeOneRole("rollout_worker", {v1::WeightsService::service_full_name()}, trust_domain);
}

WeightsReader::WeightsReader(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context,
                             const v1::StreamWeightsRequest& request)
    : stub_(channel), call_(stub_.PrepareCall(context, kMethod, &queue_)) {
  call_->StartCall(this);
  if (!Wait()) return;
  grpc::ByteBuffer bytes;
  bool own = false;
  if (!grpc::SerializationTraits<v1::StreamWeightsRequest>::Serialize(request, &bytes, &own).ok()) {
    context->TryCancel();
    return;
  }
  call_->WriteLast(bytes, grpc::WriteOptions(), this);
  Wait();
}

WeightsReader::~WeightsReader() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool WeightsReader::Read(grpc::ByteBuffer* chunk) {
  chunk->Clear();  // its memory can take what comes
  call_->Read(chunk, this);
  return Wait();
}

grpc::Status WeightsReader::Finish() {
  grpc::Status status;
  call_->Finish(&status, this);
  Wait();
  return status;
}

bool WeightsReader::Wait() {
  void* tag = nullptr;
  bool ok = false;
  return queue_.Next(&tag, &ok) && ok;
}

}  // namespace rlhf::client
