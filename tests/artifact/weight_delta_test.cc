#include "artifact/weight_delta.h"

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

namespace rlhf::artifact {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes RandomBytes(size_t size, std::mt19937_64& random) {
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// Changes each element with this probability.
Bytes Changed(Bytes bytes, size_t element_size, double share, std::mt19937_64& random) {
  std::bernoulli_distribution changes(share);
  for (size_t at = 0; at + element_size <= bytes.size(); at += element_size) {
    if (changes(random)) bytes[at + random() % element_size] ^= static_cast<uint8_t>(1 + random() % 255);
  }
  return bytes;
}

TEST(WeightDelta, IsExactAndComesBack) {
  std::mt19937_64 random(1);
  for (const size_t element_size : {size_t{2}, size_t{4}}) {
    for (const size_t elements : {1, 3, 4, 5, 63, 1000, 100'000}) {
      for (const double share : {0.0, 0.0005, 0.01, 0.3, 1.0}) {
        const Bytes from = RandomBytes(elements * element_size, random);
        const Bytes to = Changed(from, element_size, share, random);
        Bytes delta;
        ASSERT_TRUE(EncodeWeightDelta(from, to, element_size, SIZE_MAX, &delta));
        EXPECT_EQ(delta.empty(), from == to);
        const Bytes encoded = delta;
        Bytes target = from;
        ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), element_size, absl::MakeSpan(target)).ok());
        EXPECT_EQ(target, to);
        ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), element_size, absl::MakeSpan(target)).ok());
        EXPECT_EQ(target, from);
        EXPECT_EQ(delta, encoded);
      }
    }
  }
}

// The format as the header has it, an element at a time.
template <typename Element>
Bytes Reference(const Bytes& from, const Bytes& to) {
  Bytes out;
  uint64_t equal = 0;
  for (size_t at = 0; at < to.size(); at += sizeof(Element)) {
    Element was, is;
    std::memcpy(&was, from.data() + at, sizeof(Element));
    std::memcpy(&is, to.data() + at, sizeof(Element));
    if (was == is) {
      ++equal;
      continue;
    }
    const auto by = static_cast<std::make_signed_t<Element>>(static_cast<Element>(is - was));
    const uint64_t code = by == 1 ? 0 : by == -1 ? 1 : by >= -127 && by <= 127 ? 3 : 2;
    uint64_t number = 4 * equal + code;
    for (; number >= 0x80; number >>= 7) out.push_back(static_cast<uint8_t>(number | 0x80));
    out.push_back(static_cast<uint8_t>(number));
    if (code == 3) out.push_back(static_cast<uint8_t>(by));
    if (code == 2) out.insert(out.end(), to.begin() + at, to.begin() + at + sizeof(Element));
    equal = 0;
  }
  return out;
}

TEST(WeightDelta, TheBytesAreThoseOfTheFormat) {
  std::mt19937_64 random(4);
  for (size_t elements = 1; elements <= 200'000; elements = elements < 200 ? elements + 1 : elements * 3) {
    for (const double share : {0.00003, 0.02, 0.5}) {
      const size_t size = elements * 4;  // of 2 bytes, twice as many
      const Bytes from = RandomBytes(size, random);
      Bytes to = from;
      std::bernoulli_distribution changes(share);
      for (size_t at = 0; at < size; at += 2) {
        if (!changes(random)) continue;
        uint16_t value;
        std::memcpy(&value, to.data() + at, 2);
        const uint16_t by[] = {1, 0xffff, 127, 0xff81, 128, 0xff80, static_cast<uint16_t>(random())};
        value = static_cast<uint16_t>(value + by[random() % std::size(by)]);
        std::memcpy(to.data() + at, &value, 2);
      }
      Bytes two, four;
      ASSERT_TRUE(EncodeWeightDelta(from, to, 2, SIZE_MAX, &two));
      ASSERT_TRUE(EncodeWeightDelta(from, to, 4, SIZE_MAX, &four));
      EXPECT_EQ(two, Reference<uint16_t>(from, to)) << elements << " elements, " << share;
      EXPECT_EQ(four, Reference<uint32_t>(from, to)) << elements << " elements, " << share;
    }
  }
}

TEST(WeightDelta, OneInAHundredTakesUnderThreePercent) {
  std::mt19937_64 random(2);
  const Bytes from = RandomBytes(2'000'000, random), to = Changed(from, 2, 0.01, random);
  Bytes delta;
  ASSERT_TRUE(EncodeWeightDelta(from, to, 2, SIZE_MAX, &delta));
  EXPECT_LT(delta.size(), to.size() * 3 / 100);
}

TEST(WeightDelta, StepsToTheNextValueTakeAByte) {
  // 1 in 32: a value up, one down, across a carry and around both ends.
  Bytes from(256), to;
  const std::vector<uint16_t> values = {0x00ff, 0x3f80, 0xffff, 0x0000};
  for (size_t i = 0; i < values.size(); ++i) std::memcpy(from.data() + 64 * i, &values[i], 2);
  to = from;
  const std::vector<uint16_t> next = {0x0100, 0x3f7f, 0x0000, 0xffff};
  for (size_t i = 0; i < next.size(); ++i) std::memcpy(to.data() + 64 * i, &next[i], 2);
  Bytes delta;
  ASSERT_TRUE(EncodeWeightDelta(from, to, 2, SIZE_MAX, &delta));
  EXPECT_EQ(delta, (Bytes{0, 31 * 4 + 1, 31 * 4, 31 * 4 + 1}));
  Bytes target = from;
  ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(target)).ok());
  EXPECT_EQ(target, to);
  ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(target)).ok());
  EXPECT_EQ(target, from);
}

TEST(WeightDelta, EveryDifferenceIsExact) {
  // All of 2 bytes, from a value in the middle; the nearest 127 on either side take a byte beside the number.
  for (int by = -32768; by < 32768; ++by) {
    const uint16_t was = 0x1234, is = static_cast<uint16_t>(was + by);
    Bytes from(2), to(2), delta;
    std::memcpy(from.data(), &was, 2);
    std::memcpy(to.data(), &is, 2);
    ASSERT_TRUE(EncodeWeightDelta(from, to, 2, SIZE_MAX, &delta));
    const size_t size = by == 0 ? 0 : std::abs(by) == 1 ? 1 : std::abs(by) <= 127 ? 2 : 3;
    ASSERT_EQ(delta.size(), size) << by;
    Bytes target = from;
    ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(target)).ok());
    ASSERT_EQ(target, to) << by;
    ASSERT_TRUE(SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(target)).ok());
    ASSERT_EQ(target, from) << by;
  }
}

TEST(WeightDelta, GivesUpAtTheLimit) {
  std::mt19937_64 random(3);
  const Bytes from = RandomBytes(4096, random), to = Changed(from, 2, 1, random);
  Bytes out = {7};
  EXPECT_FALSE(EncodeWeightDelta(from, to, 2, to.size(), &out));
  EXPECT_EQ(out, Bytes{7});
  EXPECT_FALSE(EncodeWeightDelta(from, Bytes(10), 2, SIZE_MAX, &out));
  EXPECT_FALSE(EncodeWeightDelta(from, to, 8, SIZE_MAX, &out));
}

TEST(WeightDelta, WhatIsMalformedChangesNothing) {
  const Bytes before = {1, 2, 3, 4, 5, 6};
  for (Bytes delta : {Bytes{2, 9, 9, 14, 9, 9},     // the second is beyond the end
                      Bytes{2, 9, 9, 2, 9},         // half a value
                      Bytes{0, 3}, Bytes{0, 0x80},  // half a number
                      Bytes{0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 9, 9},
                      Bytes{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 9, 9}}) {
    Bytes target = before;
    EXPECT_EQ(SwapWeightDelta(absl::MakeSpan(delta), 2, absl::MakeSpan(target)).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(target, before);
  }
  Bytes target = before, delta = {0, 1};
  EXPECT_EQ(SwapWeightDelta(absl::MakeSpan(delta), 1, absl::MakeSpan(target)).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace rlhf::artifact
