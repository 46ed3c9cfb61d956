// What of quotas is kept, and who sees which.
#include "coordinator/quotas.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/memory_store.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

v1::Quota QuotaOf(const std::string& project, const std::string& submitter, int32_t jobs) {
  v1::Quota quota;
  quota.set_project(project);
  quota.set_submitter(submitter);
  quota.set_max_jobs(jobs);
  return quota;
}

class QuotasTest : public testing::Test {
 protected:
  void Set(const v1::Quota& quota) {
    WriteBatch batch;
    quotas_.Set(quota, &batch);
    ASSERT_TRUE(store_.CommitAndWait(std::move(batch)).ok());
  }
  // "PROJECT/SUBMITTER" of a page's, and the token of the next one.
  std::vector<std::string> Page(const std::string& project, int size, std::string* token) const {
    const v1::ListQuotasResponse response = quotas_.List(project, *token, size);
    std::vector<std::string> out;
    for (const v1::Quota& quota : response.quotas())
      out.push_back(absl::StrCat(quota.project(), "/", quota.submitter()));
    *token = response.next_page_token();
    return out;
  }
  EdgeMemoryStore store_;
  Quotas quotas_;
};

// As people write "no bound" where they do not know that 0 is: all of them together are more than a number can hold.
TEST_F(QuotasTest, TheLargestBoundsAreBounds) {
  v1::Quota quota = QuotaOf("p", "", std::numeric_limits<int32_t>::max());
  quota.set_max_learners(8);
  ASSERT_TRUE(Quotas::Check(quota).ok());
  Set(quota);
  EXPECT_EQ(quotas_.Of("p", "").max_learners(), 8);
  Quotas restarted;
  ASSERT_TRUE(restarted.Recover(&store_).ok());
  EXPECT_EQ(restarted.Of("p", "").max_learners(), 8);
  EXPECT_EQ(restarted.Of("p", "").max_jobs(), std::numeric_limits<int32_t>::max());
}

TEST_F(QuotasTest, EachBoundAloneAndAWeightAreKept) {
  for (const auto set : {&v1::Quota::set_max_jobs, &v1::Quota::set_max_learners, &v1::Quota::set_max_rollout_workers,
                         &v1::Quota::set_max_score_requests}) {
    v1::Quota quota = QuotaOf("p", "", 0);
    (quota.*set)(3);
    Set(quota);
    EXPECT_EQ(quotas_.Of("p", "").SerializeAsString(), [&] {
      quota.set_weight(1);
      return quota.SerializeAsString();
    }());
  }
  v1::Quota weight = QuotaOf("p", "", 0);
  weight.set_weight(2);
  Set(weight);
  EXPECT_EQ(quotas_.Of("p", "").weight(), 2);
  Set(QuotaOf("p", "", 0));
  Quotas restarted;
  ASSERT_TRUE(restarted.Recover(&store_).ok());
  std::string token;
  EXPECT_EQ(restarted.List("*", "", 10).quotas_size(), 0) << "without bounds it is gone";
  EXPECT_EQ(quotas_.List("*", "", 10).quotas_size(), 0);
}

TEST_F(QuotasTest, AProjectsListIsItsOwnAndComesInPages) {
  for (const char* submitter : {"", "ada", "bob"}) {
    Set(QuotaOf("blue", submitter, 1));
    Set(QuotaOf("red", submitter, 2));
  }
  std::string token;
  EXPECT_THAT(Page("red", 2, &token), ElementsAre("red/", "red/ada"));
  EXPECT_THAT(Page("red", 2, &token), ElementsAre("red/bob"));
  EXPECT_EQ(token, "");
  EXPECT_THAT(Page("blue", 3, &token), ElementsAre("blue/", "blue/ada", "blue/bob"));
  EXPECT_EQ(token, "") << "others' are no next page";
  EXPECT_THAT(Page("*", 5, &token), ElementsAre("blue/", "blue/ada", "blue/bob", "red/", "red/ada"));
  EXPECT_THAT(Page("*", 5, &token), ElementsAre("red/bob"));
  EXPECT_EQ(token, "");
}

}  // namespace
}  // namespace rlhf::coordinator
