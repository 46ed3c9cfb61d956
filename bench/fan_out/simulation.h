// How long a version's weights take from a learner to all rollout workers, in virtual time: the coordinator's real tree
// (coordinator/scheduling/weight_fan_out.h) on a made-up network.
//
// Every process has a full-duplex link of its own to a switch that is no bound. A stream is cut into blocks; what a
// worker has verified, it sends on. A process sends one block at a time, round robin to those that wait for one, so
// that each gets an equal share of its link, as of several TCP connections. All workers ask at the same moment: the
// worst case.
#pragma once

#include <cstdint>

#include "absl/time/time.h"

namespace rlhf::bench {

struct FanOutNetwork {
  double gbit_per_second = 10;                               // of each link, in each direction
  absl::Duration latency = absl::Microseconds(200);          // from the last byte sent to its arrival
  absl::Duration verify_gigabyte = absl::Milliseconds(200);  // XXH3-128 and a copy, beside receiving
  uint64_t block_bytes = 64 << 20;                           // what is verified at once: about a tensor
};

struct FanOutTimes {
  absl::Duration first, median, last;  // from asking until a worker has all of it, verified
  uint64_t learner_bytes = 0;          // that the learner sent
  int depth = 0;                       // of the tree; 1: all get it from the learner
};

// degree 0: from the learner alone.
FanOutTimes SimulateFanOut(int workers, int degree, uint64_t bytes, const FanOutNetwork& network);

}  // namespace rlhf::bench
