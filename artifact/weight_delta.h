// What changes between two versions of a tensor: for each changed element a LEB128 varint of 4 · (equal elements before
// it) + a code, which says how its bytes, as a little-endian number, change: 0: by +1; 1: by -1; 2: its new bytes
// follow; 3: a byte follows, the difference from -127 to 127. Exact for any type. Small when few elements change and
// most of those to the next value, as in bfloat16 at a low learning rate (about 1 % a step, arXiv 2602.03839).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace rlhf::artifact {

// Appends the delta from `from` to `to`, of equal sizes, in elements of 2 or 4 bytes. False, with *out as it was, when
// it would take `limit` bytes or more.
bool EncodeWeightDelta(absl::Span<const uint8_t> from, absl::Span<const uint8_t> to, size_t element_size, size_t limit,
                       std::vector<uint8_t>* out);

// Makes `target` the newer tensor and the delta the one that leads back: a second call restores both. DataLoss, with
// nothing changed, when the delta is malformed or reaches beyond the target.
absl::Status SwapWeightDelta(absl::Span<uint8_t> delta, size_t element_size, absl::Span<uint8_t> target);

}  // namespace rlhf::artifact
