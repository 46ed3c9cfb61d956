// Draws a token from one row of logits by a group of threads: a CUDA block, or threads of the host. The token is what
// Sample (model/sampler.h) draws, but where the noise falls within rounding of the border between two tokens.
//
// Nothing is sorted: the order of top-k and top-p is (probability falling, id rising), and a place in it is found by
// bisecting the probabilities' bits, two at a time, with a sum over the row each.
//
// A Group has, of its threads: rank(), size(), and over all of them Sum(double), SumThree(double*),
// Max(float), Min(int32_t) and Before(double), the sum of the ranks below. Every thread calls each in the same order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "model/kernels/philox.h"

namespace rlhf::model::kernels {

struct SampleRequest {
  PhiloxCounter noise;
  float inverse_temperature = 1;
  int32_t greedy = 0;
  int32_t top_k = 0;  // 0: off
  int32_t unused = 0;
  double top_p = 1;  // 1: off
};

struct SampledRow {
  int32_t id = 0;
  float log_prob = 0;       // of softmax(logits · inverse_temperature)
  float log_kept_mass = 0;  // log of the mass that top-k and top-p keep
};

namespace sample_row {

constexpr int32_t kNone = 0x7FFFFFFF;

RLHF_HOST_DEVICE inline uint32_t Bits(float value) {  // of floats that are not negative: ordered as they are
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// All tokens at or before a place in the order.
struct Cut {
  uint32_t bits = 0;
  int32_t id = kNone;
  RLHF_HOST_DEVICE bool Keeps(uint32_t other, int64_t other_id) const {
    return other > bits || (other == bits && other_id <= id);
  }
};

// What a place must reach: a number of tokens or their mass, or pass it.
struct Wanted {
  bool count = false, pass = false;
  double amount = 0;
  RLHF_HOST_DEVICE bool ReachedBy(double sum) const { return pass ? sum > amount : sum >= amount; }
};

// The part of a row that a thread walks through in the order of ids.
template <class Group>
struct Chunk {
  RLHF_HOST_DEVICE Chunk(const Group& group, int64_t width) {
    const int64_t size = (width + group.size() - 1) / group.size();
    begin = group.rank() * size < width ? group.rank() * size : width;
    end = begin + size < width ? begin + size : width;
  }
  int64_t begin, end;
};

// Of the tokens that `within` keeps, those up to the first by which `wanted` is reached; all when it never is.
template <class Group>
RLHF_HOST_DEVICE Cut Find(Group& group, const float* exps, int64_t width, const Cut& within, const Wanted& wanted) {
  uint32_t bits = 0;  // the greatest for which the tokens of at least so many bits reach it
  bool reached = false;
  for (int shift = 28; shift >= 0; shift -= 2) {  // an exponential is at most 1: its two highest bits are 0
    double sums[3] = {0, 0, 0};
    for (int64_t i = group.rank(); i < width; i += group.size()) {
      const uint32_t own = Bits(exps[i]);
      if (!within.Keeps(own, i)) continue;
      const double weight = wanted.count ? 1.0 : static_cast<double>(exps[i]);
      for (uint32_t digit = 1; digit <= 3; ++digit) {
        if (own >= (bits | (digit << shift))) sums[digit - 1] += weight;
      }
    }
    group.SumThree(sums);
    for (uint32_t digit = 3; digit >= 1; --digit) {
      if (!wanted.ReachedBy(sums[digit - 1])) continue;
      bits |= digit << shift;
      reached = true;
      break;
    }
  }
  if (bits < within.bits) bits = within.bits;
  // The tokens of just so many bits, by their ids, until it is reached.
  double above = 0;
  for (int64_t i = group.rank(); i < width; i += group.size()) {
    if (Bits(exps[i]) > bits) above += wanted.count ? 1.0 : static_cast<double>(exps[i]);
  }
  above = group.Sum(above);
  if (!reached && !wanted.ReachedBy(above)) {
    // Also where all tokens that are left have no mass.
    if (!wanted.count) return within;
  }
  const Chunk<Group> chunk(group, width);
  double ties = 0;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    if (Bits(exps[i]) == bits && within.Keeps(bits, i)) ties += 1;
  }
  const double before = group.Before(ties), all = group.Sum(ties);
  float tie;
  memcpy(&tie, &bits, sizeof(tie));
  const double needed = (wanted.amount - above) / (wanted.count ? 1.0 : static_cast<double>(tie));
  double nth = wanted.pass ? floor(needed) + 1 : ceil(needed);
  if (!(nth >= 1)) nth = 1;
  if (nth > all) nth = all;
  int32_t id = kNone;
  if (before < nth && before + ties >= nth) {
    double seen = before;
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      if (Bits(exps[i]) != bits || !within.Keeps(bits, i)) continue;
      seen += 1;
      if (seen >= nth) {
        id = static_cast<int32_t>(i);
        break;
      }
    }
  }
  Cut cut;
  cut.bits = bits;
  cut.id = group.Min(id);
  return cut;
}

template <class Group>
RLHF_HOST_DEVICE double Mass(Group& group, const float* exps, int64_t width, const Cut& cut) {
  double mass = 0;
  for (int64_t i = group.rank(); i < width; i += group.size()) {
    if (cut.Keeps(Bits(exps[i]), i)) mass += exps[i];
  }
  return group.Sum(mass);
}

// The last token that a cut keeps.
template <class Group>
RLHF_HOST_DEVICE int32_t Last(Group& group, const float* exps, int64_t width, const Cut& cut) {
  if (cut.id != kNone) return cut.id;
  // Everything is kept: the highest id of the least probability.
  float least = 1;
  for (int64_t i = group.rank(); i < width; i += group.size()) least = exps[i] < least ? exps[i] : least;
  least = -group.Max(-least);
  int32_t reversed = kNone;
  for (int64_t i = group.rank(); i < width; i += group.size()) {
    if (exps[i] == least && kNone - static_cast<int32_t>(i) < reversed) reversed = kNone - static_cast<int32_t>(i);
  }
  return kNone - group.Min(reversed);
}

// The first token, by id, at which the sum of the exponentials passes `target`; the last that has any where none does.
template <class Group>
RLHF_HOST_DEVICE int32_t Walk(Group& group, const float* exps, int64_t width, double target) {
  const Chunk<Group> chunk(group, width);
  double own = 0;
  int32_t last = -1;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    own += exps[i];
    if (exps[i] > 0) last = static_cast<int32_t>(i);
  }
  const double before = group.Before(own);
  const int32_t passes = group.Min(last >= 0 && before + own > target ? static_cast<int32_t>(group.rank()) : kNone);
  int32_t id = kNone;
  if (static_cast<int32_t>(group.rank()) == passes) {
    double sum = before;
    for (int64_t i = chunk.begin; i < chunk.end; ++i) {
      if (exps[i] > 0) id = static_cast<int32_t>(i);
      sum += exps[i];
      if (sum > target) break;
    }
  } else if (passes == kNone) {
    id = kNone - 1 - last;  // the highest of all becomes the least
  }
  const int32_t found = group.Min(id);
  return passes == kNone ? kNone - 1 - found : found;
}

}  // namespace sample_row

// row, exps: [width]; exps is scratch, shared by the group. Every thread returns the token. A row without a finite
// number gives token 0 with a log-probability that is not finite.
template <class Group>
RLHF_HOST_DEVICE SampledRow SampleRow(Group& group, const float* row, int64_t width, const SampleRequest& request,
                                      float* exps) {
  using sample_row::Cut;
  using sample_row::kNone;
  using sample_row::Wanted;
  const float inverse = request.inverse_temperature;
  float highest = -INFINITY;
  for (int64_t i = group.rank(); i < width; i += group.size()) highest = row[i] > highest ? row[i] : highest;
  highest = group.Max(highest);
  double total = 0;
  for (int64_t i = group.rank(); i < width; i += group.size()) {
    exps[i] = expf(row[i] * inverse - highest * inverse);
    total += exps[i];
  }
  total = group.Sum(total);  // and what one thread wrote, the others see
  SampledRow out;
  if (request.greedy != 0) {
    int32_t first = kNone;
    for (int64_t i = group.rank(); i < width && first == kNone; i += group.size()) {
      if (row[i] == highest) first = static_cast<int32_t>(i);
    }
    out.id = group.Min(first);
  } else {
    const bool some = request.top_k > 0 && request.top_k < width;
    const double uniform = PhiloxUniform(request.noise);
    if (!some && request.top_p >= 1) {
      out.id = sample_row::Walk(group, exps, width, uniform * total);
    } else {
      Cut cut;
      double mass = total;
      if (some) {
        Wanted wanted;
        wanted.count = true;
        wanted.amount = request.top_k;
        cut = sample_row::Find(group, exps, width, cut, wanted);
        mass = sample_row::Mass(group, exps, width, cut);
      }
      if (request.top_p < 1) {
        Wanted wanted;
        wanted.amount = request.top_p * mass;
        cut = sample_row::Find(group, exps, width, cut, wanted);
        mass = sample_row::Mass(group, exps, width, cut);
      }
      Wanted wanted;
      wanted.pass = true;
      wanted.amount = uniform * mass;
      out.id = sample_row::Last(group, exps, width, sample_row::Find(group, exps, width, cut, wanted));
      out.log_kept_mass = static_cast<float>(log(mass / total));
    }
  }
  if (out.id < 0 || out.id >= width) out.id = 0;
  out.log_prob = row[out.id] * inverse - static_cast<float>(highest * inverse + log(total));
  return out;
}

}  // namespace rlhf::model::kernels
