#include "artifact/weight_delta.h"

#include <bit>
#include <cstring>

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

size_t WriteVarint(uint64_t value, uint8_t* to) {
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) to[size++] = static_cast<uint8_t>(value | 0x80);
  to[size++] = static_cast<uint8_t>(value);
  return size;
}

// How many elements from `begin` on are equal. Little-endian, as every tensor on the wire.
template <typename Element>
size_t EqualElements(const uint8_t* from, const uint8_t* to, size_t begin, size_t end) {
  constexpr size_t kWord = sizeof(uint64_t) / sizeof(Element);
  size_t at = begin;
  const auto load = [](const uint8_t* bytes, size_t element, auto value) {
    std::memcpy(&value, bytes + element * sizeof(Element), sizeof(value));
    return value;
  };
  for (; at + kWord <= end; at += kWord) {
    const uint64_t different = load(from, at, uint64_t{}) ^ load(to, at, uint64_t{});
    if (different != 0) return at - begin + static_cast<size_t>(std::countr_zero(different)) / (8 * sizeof(Element));
  }
  while (at < end && load(from, at, Element{}) == load(to, at, Element{})) ++at;
  return at - begin;
}

template <typename Element>
bool Encode(absl::Span<const uint8_t> from, absl::Span<const uint8_t> to, size_t limit, std::vector<uint8_t>* out) {
  const size_t before = out->size(), elements = to.size() / sizeof(Element);
  size_t at = 0;
  while (true) {
    const size_t equal = EqualElements<Element>(from.data(), to.data(), at, elements);
    at += equal;
    if (at == elements) return true;
    const uint8_t* is = to.data() + at * sizeof(Element);
    const auto by = static_cast<Element>(Load<Element>(is) - Load<Element>(from.data() + at * sizeof(Element)));
    const Code code = by == 1                                                 ? kUp
                      : by == static_cast<Element>(-1)                        ? kDown
                      : static_cast<Element>(by + kMostStep) <= 2 * kMostStep ? kByte
                                                                              : kNewBytes;
    uint8_t entry[kMostVarint + kMostElement];
    size_t size = WriteVarint(static_cast<uint64_t>(equal) << kCodeBits | code, entry);
    if (code == kNewBytes) std::memcpy(entry + size, is, sizeof(Element));
    if (code == kByte) entry[size] = static_cast<uint8_t>(by);
    size += Follows(code, sizeof(Element));
    out->insert(out->end(), entry, entry + size);
    ++at;
    if (out->size() - before >= limit) {
      out->resize(before);
      return false;
    }
  }
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
