// A job's samples as lists show them: in pages that end by count and by bytes.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/page_limit.h"
#include "tests/coordinator/sampling_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;

TEST(PageLimitTest, APageEndsByCountOrByBytesAndHasAtLeastOneItem) {
  PageLimit by_count(2);
  EXPECT_TRUE(by_count.Take(1));
  EXPECT_TRUE(by_count.Take(1));
  EXPECT_FALSE(by_count.Take(1));
  PageLimit by_bytes(100, 10);
  EXPECT_TRUE(by_bytes.Take(4));
  EXPECT_FALSE(by_bytes.Take(7));
  EXPECT_TRUE(by_bytes.Take(6));
  EXPECT_FALSE(by_bytes.Take(1));
  PageLimit too_long(100, 10);
  EXPECT_TRUE(too_long.Take(11));
  EXPECT_FALSE(too_long.Take(1));
}

TEST_F(SamplingTest, PagesOfLongSamplesEndByTheirBytesAndGoOn) {
  AddJob(0);
  Issue(1);
  Generate(Lease(), std::string(7 << 20, 'x'));
  ASSERT_TRUE(payloads_->Sync().ok());
  const auto pages = [&](int most, size_t most_bytes = kPageBytes) {
    std::vector<std::vector<int>> ordinals;
    std::string after;
    do {
      std::string next;
      const auto page = sampling_->List("job", -1, after, PageLimit(most, most_bytes), &next);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) break;
      ordinals.emplace_back();
      size_t bytes = 0;
      for (const v1::SampleView& view : *page) {
        EXPECT_EQ(view.sample().response_text().size(), size_t{7} << 20);
        ordinals.back().push_back(view.row().id().ordinal());
        bytes += view.ByteSizeLong();
      }
      EXPECT_TRUE(bytes <= most_bytes || page->size() == 1) << bytes;
      after = next;
    } while (!after.empty());
    return ordinals;
  };
  EXPECT_THAT(pages(1000), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(pages(1000, 1), ElementsAre(ElementsAre(0), ElementsAre(1), ElementsAre(2), ElementsAre(3)));
  EXPECT_THAT(pages(3, 100 << 20), ElementsAre(ElementsAre(0, 1, 2), ElementsAre(3)));
  EXPECT_THAT(pages(4, 100 << 20), ElementsAre(ElementsAre(0, 1, 2, 3)));
}

}  // namespace
}  // namespace rlhf::coordinator
