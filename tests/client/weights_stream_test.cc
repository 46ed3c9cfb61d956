// Chunks of weights as bytes on the wire, against protobuf's own idea of them.
#include "client/cpp/weights_stream.h"

#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace rlhf::client {
namespace {

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  return bytes;
}

// As gRPC receives it: in pieces that end anywhere.
grpc::ByteBuffer InPieces(const std::string& bytes, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += size) slices.emplace_back(bytes.substr(at, size));
  return {slices.data(), slices.size()};
}

// What the chunk says, put together; `begin` is where its data begins.
absl::StatusOr<std::string> Read(const std::string& bytes, size_t piece_size, uint64_t begin) {
  grpc::ByteBuffer buffer = InPieces(bytes, piece_size);
  std::string data;
  const absl::Status status = ReadChunk(&buffer, [&](uint64_t offset, absl::Span<const uint8_t> piece) {
    EXPECT_EQ(offset, begin + data.size());
    data.append(piece.begin(), piece.end());
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return data;
}

v1::WeightsChunk Chunk(uint64_t offset, const std::string& data) {
  v1::WeightsChunk chunk;
  chunk.set_offset(offset);
  chunk.set_data(data);
  return chunk;
}

TEST(WeightsStreamTest, AChunkIsWhatProtobufReads) {
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, uint64_t{300}, uint64_t{1} << 40}) {
    for (const size_t size : {1, 127, 128, 70'000}) {
      const auto owner = std::make_shared<const std::string>(size, 'w');
      grpc::ByteBuffer buffer =
          ChunkBuffer(offset, absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(owner->data()), size), owner);
      EXPECT_EQ(owner.use_count(), 2) << "held until it is sent";
      v1::WeightsChunk chunk;
      ASSERT_TRUE(chunk.ParseFromString(Bytes(buffer)));
      EXPECT_EQ(chunk.offset(), offset);
      EXPECT_EQ(chunk.data(), *owner);
      buffer.Clear();
      EXPECT_EQ(owner.use_count(), 1) << "and no longer";
    }
  }
}

TEST(WeightsStreamTest, AChunkOfProtobufIsReadInWhateverPieces) {
  std::string data(5000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{1} << 33}) {
    for (const size_t piece : {1, 3, 100, 4999, 10'000}) {
      const auto read = Read(Chunk(offset, data).SerializeAsString(), piece, offset);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, data);
      // A field of a later version, before and after.
      const std::string unknown = "\x1a\x03new";
      for (const std::string& bytes :
           {unknown + Chunk(offset, data).SerializeAsString(), Chunk(offset, data).SerializeAsString() + unknown}) {
        const auto newer = Read(bytes, piece, offset);
        ASSERT_TRUE(newer.ok()) << newer.status();
        EXPECT_EQ(*newer, data);
      }
    }
  }
}

TEST(WeightsStreamTest, OtherBytesAreDataLoss) {
  const std::string whole = Chunk(9, "0123456789").SerializeAsString();
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_TRUE(absl::IsDataLoss(Read(whole.substr(0, size), 4, 9).status())) << size;
  EXPECT_TRUE(absl::IsDataLoss(Read(Chunk(9, "").SerializeAsString(), 4, 9).status())) << "no data";
  EXPECT_TRUE(absl::IsDataLoss(Read(whole + whole, 64, 9).status())) << "two chunks";
  EXPECT_TRUE(absl::IsDataLoss(Read("\xff\xff\xff\xff", 64, 0).status())) << "not a message";
}

TEST(WeightsStreamTest, WhatTheReaderRefusesEndsIt) {
  grpc::ByteBuffer buffer = InPieces(Chunk(0, std::string(100, 'w')).SerializeAsString(), 10);
  int calls = 0;
  const absl::Status status = ReadChunk(&buffer, [&](uint64_t /*offset*/, absl::Span<const uint8_t> /*piece*/) {
    return ++calls == 2 ? absl::AbortedError("enough") : absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace rlhf::client
