// Each bound of the monitor by itself.
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/jobs/monitor.h"

namespace rlhf::coordinator {
namespace {

v1::MonitorStep Seen(int64_t step, const std::map<std::string, double>& values) {
  v1::MonitorStep seen;
  seen.set_step(step);
  seen.mutable_values()->insert(values.begin(), values.end());
  return seen;
}

struct BoundCase {
  const char* about;
  void (v1::MonitorSpec::*bound)(double);
  double to;
  const char* key;
  double first, now;
  const char* monitor;  // that raises the alarm; null: none
};

TEST(MonitorTableTest, EachBoundAlarmsByItselfAndOnlyOverIt) {
  constexpr auto kKl = &v1::MonitorSpec::set_max_kl, kRepetition = &v1::MonitorSpec::set_max_repetition,
                 kOutside = &v1::MonitorSpec::set_max_outside_share,
                 kCorrelation = &v1::MonitorSpec::set_max_reward_length_correlation,
                 kLength = &v1::MonitorSpec::set_max_length_ratio, kDrop = &v1::MonitorSpec::set_max_gold_drop;
  const std::vector<BoundCase> cases = {
      {"kl over", kKl, 3, "kl", 1, 3.1, "kl"},
      {"kl at", kKl, 3, "kl", 1, 3, nullptr},
      {"repetition over", kRepetition, 0.3, "repetition", 0, 0.31, "repetition"},
      {"repetition at", kRepetition, 0.3, "repetition", 0, 0.3, nullptr},
      {"outside over", kOutside, 0.25, "outside", 0, 0.5, "outside"},
      {"outside at", kOutside, 0.25, "outside", 0, 0.25, nullptr},
      {"a reward for length", kCorrelation, 0.5, "reward_length", 0, 0.8, "reward_length"},
      {"a reward against length", kCorrelation, 0.5, "reward_length", 0, -0.8, "reward_length"},
      {"hardly against length", kCorrelation, 0.5, "reward_length", 0, -0.4, nullptr},
      {"longer", kLength, 2, "length", 8, 20, "length"},
      {"shorter", kLength, 2, "length", 12, 4, "length"},
      {"twice as long", kLength, 2, "length", 8, 16, nullptr},
      {"half as long", kLength, 2, "length", 8, 4, nullptr},
      {"a category falls", kDrop, 0.25, "gold/known", 0.75, 0.25, "gold_drop"},
      {"it falls a little", kDrop, 0.25, "gold/known", 0.75, 0.5, nullptr},
  };
  for (const BoundCase& c : cases) {
    SCOPED_TRACE(c.about);
    v1::MonitorSpec spec;
    spec.set_window(1);
    (spec.*c.bound)(c.to);
    Monitor monitor(spec);
    EXPECT_TRUE(monitor.on());
    EXPECT_THAT(monitor.Add(Seen(1, {{c.key, c.first}})), testing::IsEmpty());
    const std::vector<v1::Alert> alarms = monitor.Add(Seen(2, {{c.key, c.now}}));
    if (c.monitor == nullptr) {
      EXPECT_THAT(alarms, testing::IsEmpty());
      continue;
    }
    ASSERT_THAT(alarms, testing::SizeIs(1));
    EXPECT_EQ(alarms[0].monitor(), c.monitor);
    EXPECT_EQ(alarms[0].bound(), c.to);
  }
}

}  // namespace
}  // namespace rlhf::coordinator
