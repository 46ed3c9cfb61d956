// The tree by which a version's weights reach the rollout workers.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/scheduling/weight_fan_out.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Workers are named by what they serve at.
std::vector<std::string> Ask(WeightFanOut& tree, const std::string& worker) {
  return tree.SourcesOf(worker, worker);
}

TEST(WeightFanOut, TheFirstGetItFromTheLearnerTheOthersFromThem) {
  WeightFanOut tree(2);
  EXPECT_THAT(Ask(tree, "a"), IsEmpty());
  EXPECT_THAT(Ask(tree, "b"), IsEmpty());
  EXPECT_THAT(Ask(tree, "c"), ElementsAre("a"));
  EXPECT_THAT(Ask(tree, "d"), ElementsAre("a"));
  EXPECT_THAT(Ask(tree, "e"), ElementsAre("b"));
  EXPECT_THAT(Ask(tree, "f"), ElementsAre("b"));
  EXPECT_THAT(Ask(tree, "g"), ElementsAre("c", "a"));
  EXPECT_THAT(Ask(tree, "c"), ElementsAre("a")) << "asking again changed something";
  EXPECT_EQ(tree.from_learner(), 2);
  tree.Begin();
  EXPECT_THAT(Ask(tree, "g"), IsEmpty());
}

TEST(WeightFanOut, WhoIsGoneIsNoSourceAndLeavesItsPlaceToTheNext) {
  WeightFanOut tree(2);
  for (const char* worker : {"a", "b", "c", "d", "e", "f", "g"}) Ask(tree, worker);
  tree.Leave("c");
  EXPECT_THAT(Ask(tree, "g"), ElementsAre("a"));
  EXPECT_THAT(Ask(tree, "h"), ElementsAre("a")) << "where c was";
  tree.Leave("b");
  EXPECT_EQ(tree.from_learner(), 1);
  EXPECT_THAT(Ask(tree, "e"), IsEmpty()) << "only the learner is left";
  EXPECT_THAT(Ask(tree, "b"), IsEmpty()) << "as a new one, at the learner";
  EXPECT_EQ(tree.from_learner(), 2);
  tree.Leave("never seen");
}

TEST(WeightFanOut, WhoServesNobodyIsNoSource) {
  WeightFanOut tree(1);
  EXPECT_THAT(tree.SourcesOf("silent", ""), IsEmpty());
  EXPECT_THAT(Ask(tree, "a"), IsEmpty()) << "nobody but the learner serves";
  EXPECT_THAT(Ask(tree, "b"), ElementsAre("a"));
  EXPECT_THAT(tree.SourcesOf("silent too", ""), ElementsAre("b", "a"));
  WeightFanOut none(0);
  for (const char* worker : {"a", "b", "c"}) EXPECT_THAT(Ask(none, worker), IsEmpty());
}

TEST(WeightFanOut, ManyWorkersMakeAShallowTree) {
  for (const int degree : {2, 3, 4}) {
    WeightFanOut tree(degree);
    std::map<std::string, int> depth, below;
    int deepest = 0, at_learner = 0;
    for (int i = 0; i < 512; ++i) {
      const std::string worker = absl::StrCat(i);
      const std::vector<std::string> sources = Ask(tree, worker);
      depth[worker] = sources.empty() ? 1 : depth.at(sources[0]) + 1;  // at(): whoever it asks came before it
      deepest = std::max(deepest, depth[worker]);
      if (sources.empty()) {
        ++at_learner;
      } else {
        EXPECT_LE(++below[sources[0]], degree);
      }
      EXPECT_LE(sources.size(), 3u);
    }
    EXPECT_EQ(at_learner, degree);
    // The levels above the last one are full.
    int levels = 0;
    for (int64_t held = 0, level = 1; held < 512; ++levels) held += level *= degree;
    EXPECT_EQ(deepest, levels) << "degree " << degree;
  }
}

// Whatever comes and goes: no circle, nobody who is gone, nobody with more below it than the degree at the moment.
TEST(WeightFanOut, HoldsItsBoundsWhileWorkersComeAndGo) {
  constexpr int kDegree = 3;
  WeightFanOut tree(kDegree);
  std::mt19937 random(5);
  std::map<std::string, int> came;
  std::map<std::string, std::string> above;
  std::set<std::string> gone;
  for (int i = 0; i < 800; ++i) {
    const std::string worker = absl::StrCat(i);
    const std::vector<std::string> sources = Ask(tree, worker);
    came[worker] = i;
    above[worker] = sources.empty() ? "" : sources[0];
    int siblings = 0;
    for (const auto& [other, parent] : above) siblings += parent == above[worker] && gone.count(other) == 0 ? 1 : 0;
    EXPECT_LE(siblings, kDegree) << worker << " at " << above[worker];
    for (const std::string& source : sources) {
      EXPECT_LT(came.at(source), i);
      EXPECT_EQ(gone.count(source), 0u) << source;
    }
    if (random() % 3 != 0) continue;
    const std::string leaves = absl::StrCat(random() % static_cast<unsigned>(i + 1));
    tree.Leave(leaves);
    gone.insert(leaves);
  }
}

}  // namespace
}  // namespace rlhf::coordinator
