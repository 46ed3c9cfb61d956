// Sums of weighted values that are compared with each other. Weights such as 0.7, 0.2 and 0.1 are no exact doubles, so
// sums that are equal may differ in their last bits: what is a tie would be decided by rounding.
#pragma once

#include <cmath>

namespace rlhf {

// With the size of what was added, by which its rounding is judged.
struct RoundedSum {
  double sum = 0, size = 0;
  void Add(double term) {
    sum += term;
    size += std::abs(term);
  }
};

// a − b; 0 where that is rounding alone.
inline double Difference(const RoundedSum& a, const RoundedSum& b) {
  const double difference = a.sum - b.sum;
  return std::abs(difference) <= 1e-12 * (a.size + b.size) ? 0 : difference;
}

}  // namespace rlhf
