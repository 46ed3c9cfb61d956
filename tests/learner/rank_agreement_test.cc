// Ranks that came to the same digests, and a rank that did not.
#include "learner/service/rank_agreement.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/learner/ranks.h"

namespace rlhf::learner {
namespace {

constexpr int kDisagree = 3;

// What each of three ranks finds, where rank 1 has `second` and the others have `digest`.
std::vector<int> Compared(const std::string& digest, const std::string& second) {
  return RunRanks(3, kRanksTimeout, [&](Collective* ranks, const NextGroup&) {
    const absl::StatusOr<bool> agree = RanksAgree(ranks->rank() == 1 ? second : digest, torch::kCPU, *ranks);
    if (!agree.ok()) return 1;
    return *agree ? 0 : kDisagree;
  });
}

TEST(RankAgreementTest, OneDigitOfOneRankIsToldByAll) {
  std::string digest;
  for (int i = 0; i < 64; ++i) digest += "0123456789abcdef"[(7 * i + 3) % 16];
  EXPECT_EQ(Compared(digest, digest), std::vector<int>({0, 0, 0}));
  for (const size_t at : {size_t{0}, size_t{30}, digest.size() - 1}) {
    std::string other = digest;
    other[at] = other[at] == '0' ? '1' : '0';
    EXPECT_EQ(Compared(digest, other), std::vector<int>({kDisagree, kDisagree, kDisagree})) << "digit " << at;
  }
}

}  // namespace
}  // namespace rlhf::learner
