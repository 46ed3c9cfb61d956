// Order and division of work: seeded permutations, a rank's share, micro-batches by token budget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rlhf::learner {

// A permutation of [0, n): Fisher–Yates driven by a SplitMix64 stream keyed by (seed, stream, epoch). The same on every
// machine.
std::vector<size_t> Permutation(size_t n, uint64_t seed, uint64_t stream, uint64_t epoch);

// Endless epochs over [0, n), each in its own order: items [cursor, cursor + count).
std::vector<size_t> ItemsOf(size_t n, uint64_t seed, uint64_t stream, int64_t cursor, int64_t count);

// The part of a global list that a rank works on: contiguous, sizes differ by at most one, may be empty.
std::vector<size_t> RankShare(const std::vector<size_t>& items, int rank, int world_size);

// Splits items, in order, into groups of at most max_tokens (at least one item each); lengths are by item value.
std::vector<std::vector<size_t>> MicroBatches(const std::vector<size_t>& items, const std::vector<int64_t>& lengths,
                                              int64_t max_tokens);

}  // namespace rlhf::learner
