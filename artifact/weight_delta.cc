#include "artifact/weight_delta.h"

#include <bit>
#include <cstring>
#include <iterator>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kMostVarint = 10;
constexpr size_t kMostElement = 4;

enum Code : uint8_t { kUp = 0, kDown = 1, kNewBytes = 2, kByte = 3 };
constexpr uint8_t kCodeMask = 3, kOtherWay = 1;
constexpr int kCodeBits = 2;
constexpr int kMostStep = 127;  // what kByte can say

// How many bytes follow the number.
constexpr size_t Follows(uint64_t code, size_t element_size) {
  return code == kNewBytes ? element_size : code == kByte ? 1 : 0;
}

template <typename Element>
Element Load(const uint8_t* from) {
  Element value;
  std::memcpy(&value, from, sizeof(Element));
  return value;
}

uint8_t* WriteVarint(uint64_t value, uint8_t* to) {
  for (; value >= 0x80; value >>= 7) *to++ = static_cast<uint8_t>(value | 0x80);
  *to++ = static_cast<uint8_t>(value);
  return to;
}

constexpr size_t kBlock = 64;  // elements that are compared at once

// Bit i: element i of the two blocks differs.
template <typename Element>
uint64_t Differences(const uint8_t* from, const uint8_t* to) {
  uint64_t differs = 0;
#ifdef __SSE2__
  constexpr size_t kVector = sizeof(__m128i);
  const auto equal = [&](size_t i) {  // elements of a vector: all ones where equal
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * kVector));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(to + i * kVector));
    return sizeof(Element) == 2 ? _mm_cmpeq_epi16(a, b) : _mm_cmpeq_epi32(a, b);
  };
  for (size_t i = 0; i < kBlock / kVector; ++i) {  // 16 elements, a byte each
    const auto halves = [&](size_t first) { return _mm_packs_epi16(equal(first), equal(first + 1)); };
    const __m128i bytes = sizeof(Element) == 2 ? halves(2 * i)
                                               : _mm_packs_epi16(_mm_packs_epi32(equal(4 * i), equal(4 * i + 1)),
                                                                 _mm_packs_epi32(equal(4 * i + 2), equal(4 * i + 3)));
    differs |= static_cast<uint64_t>(static_cast<uint16_t>(~_mm_movemask_epi8(bytes))) << (kVector * i);
  }
#else
  for (size_t i = 0; i < kBlock; ++i) {
    const size_t at = i * sizeof(Element);
    differs |= static_cast<uint64_t>(Load<Element>(from + at) != Load<Element>(to + at)) << i;
  }
#endif
  return differs;
}

// One changed element, `gap` equal ones after the last; returns where the entry ends. Little-endian, as every tensor on
// the wire. Without a branch in what is common, for signs and gaps of changes are not to be predicted.
template <typename Element>
uint8_t* WriteEntry(uint64_t gap, const uint8_t* was, const uint8_t* is, uint8_t* to) {
  const auto by = static_cast<Element>(Load<Element>(is) - Load<Element>(was));
  const bool step = by == 1 || by == static_cast<Element>(-1);
  const bool byte = static_cast<Element>(by + kMostStep) <= 2 * kMostStep;
  const uint64_t code = step ? (by >> 1) & uint64_t{kOtherWay} : uint64_t{byte ? kByte : kNewBytes};
  const uint64_t number = gap << kCodeBits | code;
  if (number < 1 << 14) [[likely]] {
    const uint64_t more = number >> 7 == 0 ? 0 : 1;
    to[0] = static_cast<uint8_t>((number & 0x7f) | more << 7);
    to[1] = static_cast<uint8_t>(number >> 7);
    to += 1 + more;
  } else {
    to = WriteVarint(number, to);
  }
  if (step) [[likely]]
    return to;
  if (byte) {
    *to++ = static_cast<uint8_t>(by);
    return to;
  }
  std::memcpy(to, is, sizeof(Element));
  return to + sizeof(Element);
}

template <typename Element>
bool Encode(absl::Span<const uint8_t> from, absl::Span<const uint8_t> to, size_t limit, std::vector<uint8_t>* out) {
  constexpr size_t kBlockBytes = kBlock * sizeof(Element), kMostOfBlock = kBlock * (kMostVarint + kMostElement);
  const size_t before = out->size(), elements = to.size() / sizeof(Element);
  uint8_t entries[16 * kMostOfBlock];
  uint8_t* end = entries;
  size_t next = 0;  // the element after the last changed one
  const auto encode = [&](const uint8_t* was, const uint8_t* is, size_t block) {
    for (uint64_t differs = Differences<Element>(was, is); differs != 0; differs &= differs - 1) {
      const auto i = static_cast<size_t>(std::countr_zero(differs));
      end = WriteEntry<Element>(block + i - next, was + i * sizeof(Element), is + i * sizeof(Element), end);
      next = block + i + 1;
    }
  };
  const auto flush = [&] {
    out->insert(out->end(), entries, end);
    end = entries;
    if (out->size() - before < limit) return true;
    out->resize(before);
    return false;
  };
  size_t at = 0;
  for (; at + kBlock <= elements; at += kBlock) {
    encode(from.data() + at * sizeof(Element), to.data() + at * sizeof(Element), at);
    if (std::end(entries) - end < static_cast<ptrdiff_t>(kMostOfBlock) && !flush()) return false;
  }
  if (at < elements) {  // a block of which the rest is equal
    uint8_t was[kBlockBytes] = {}, is[kBlockBytes] = {};
    std::memcpy(was, from.data() + at * sizeof(Element), (elements - at) * sizeof(Element));
    std::memcpy(is, to.data() + at * sizeof(Element), (elements - at) * sizeof(Element));
    encode(was, is, at);
  }
  return flush();
}

// Calls visit(the byte with the code, what follows the number, the element) for each entry; DataLoss at the first bad
// one.
template <typename Visit>
absl::Status Walk(absl::Span<uint8_t> delta, size_t element_size, absl::Span<uint8_t> target, const Visit& visit) {
  const uint64_t elements = target.size() / element_size;
  uint64_t element = 0;
  size_t at = 0;
  while (at < delta.size()) {
    uint8_t* const first = delta.data() + at;
    uint64_t number = 0;
    for (int shift = 0;; shift += 7) {
      if (at == delta.size() || shift > 56) {
        return absl::DataLossError(
            absl::StrCat("weights delta: expected a whole number at byte ", at, " of ", delta.size()));
      }
      const uint8_t byte = delta[at++];
      number |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) break;
    }
    const uint64_t gap = number >> kCodeBits, code = number & kCodeMask;
    const size_t follows = Follows(code, element_size);
    if (gap >= elements - element || follows > delta.size() - at) {
      return absl::DataLossError(absl::StrCat("weights delta: expected elements below ", elements,
                                              " and what their codes ask for, found code ", code, " for the one ", gap,
                                              " after ", element, " at byte ", at, " of ", delta.size()));
    }
    element += gap;
    visit(first, delta.data() + at, target.data() + element * element_size);
    at += follows;
    ++element;
  }
  return absl::OkStatus();
}

template <typename Element>
absl::Status Swap(absl::Span<uint8_t> delta, absl::Span<uint8_t> target) {
  // First only looked at: a bad delta changes nothing.
  const absl::Status whole = Walk(delta, sizeof(Element), target, [](uint8_t*, uint8_t*, uint8_t*) {});
  if (!whole.ok()) return whole;
  return Walk(delta, sizeof(Element), target, [](uint8_t* code, uint8_t* follows, uint8_t* held) {
    const auto was = Load<Element>(held);
    Element is;
    switch (*code & kCodeMask) {
      case kNewBytes:
        is = Load<Element>(follows);
        std::memcpy(follows, &was, sizeof(Element));
        break;
      case kByte:
        is = static_cast<Element>(was + static_cast<Element>(static_cast<int8_t>(*follows)));
        *follows = static_cast<uint8_t>(-*follows);
        break;
      default:
        is = static_cast<Element>((*code & kCodeMask) == kUp ? was + 1 : was - 1);
        *code ^= kOtherWay;
    }
    std::memcpy(held, &is, sizeof(Element));
  });
}

absl::Status Unsupported(size_t element_size) {
  return absl::InvalidArgumentError(
      absl::StrCat("weights delta: expected elements of 2 or 4 bytes, found ", element_size));
}

}  // namespace

bool EncodeWeightDelta(absl::Span<const uint8_t> from, absl::Span<const uint8_t> to, size_t element_size, size_t limit,
                       std::vector<uint8_t>* out) {
  if (from.size() != to.size() || limit == 0) return false;
  if (element_size == 2) return Encode<uint16_t>(from, to, limit, out);
  if (element_size == 4) return Encode<uint32_t>(from, to, limit, out);
  return false;
}

absl::Status SwapWeightDelta(absl::Span<uint8_t> delta, size_t element_size, absl::Span<uint8_t> target) {
  if (element_size == 2) return Swap<uint16_t>(delta, target);
  if (element_size == 4) return Swap<uint32_t>(delta, target);
  return Unsupported(element_size);
}

}  // namespace rlhf::artifact
