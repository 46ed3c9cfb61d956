#include "model/split_by_tokens.h"

#include <gtest/gtest.h>

namespace rlhf::model {
namespace {

using Ranges = std::vector<std::pair<size_t, size_t>>;

TEST(SplitByTokensTest, EveryRangeFitsOrIsOneSequence) {
  EXPECT_EQ(SplitByTokens(std::vector<int64_t>{4, 4, 100, 4, 4, 1}, 8), (Ranges{{0, 2}, {2, 3}, {3, 5}, {5, 6}}));
  EXPECT_EQ(SplitByTokens(std::vector<int64_t>{100, 1}, 8), (Ranges{{0, 1}, {1, 2}}));
  EXPECT_EQ(SplitByTokens(std::vector<std::vector<int32_t>>{{1, 2}, {3}, {4, 5, 6}}, 3), (Ranges{{0, 2}, {2, 3}}));
  EXPECT_TRUE(SplitByTokens(std::vector<int64_t>(), 8).empty());
}

}  // namespace
}  // namespace rlhf::model
