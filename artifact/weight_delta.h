// What changes between two versions of a tensor: for each changed element the number of equal ones before it, as a
// LEB128 varint, then its new bytes. Exact for any type, since elements are compared as bytes; small when few change,
// as in bfloat16 at a low learning rate (about 1 % a step, arXiv 2602.03839).
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

// Exchanges the delta's values with those in `target`: a second call restores both. DataLoss, with nothing changed,
// when the delta is malformed or reaches beyond the target.
absl::Status SwapWeightDelta(absl::Span<uint8_t> delta, size_t element_size, absl::Span<uint8_t> target);

}  // namespace rlhf::artifact
