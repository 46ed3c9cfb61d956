// Who keeps shared memory, and for how long; the host's stands for a GPU's.
#include "model/device_share.h"

#include <gtest/gtest.h>

#include "tests/testing/host_share.h"

namespace rlhf::model {
namespace {

class DeviceShareTest : public testing::Test {
 protected:
  HostShare gpu_;
  DeviceShare share_{gpu_.allocator()};
};

TEST_F(DeviceShareTest, TheNewestTakesThePlaceOfTheLast) {
  EXPECT_EQ(share_.Hold(0), nullptr);
  EXPECT_EQ(share_.Hold(1), nullptr);
  const auto one = share_.Put({torch::ones({4}), torch::zeros({2}, torch::kBFloat16)});
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_NE(share_.Hold(one->generation), nullptr);
  const auto taken = gpu_.Take(*one, 20);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->view(torch::kFloat32)[3].item<float>(), 1);
  const auto held = share_.Hold(one->generation);
  const auto two = share_.Put({torch::full({5}, 7.0)});
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->handle, one->handle) << "there is room for it";
  EXPECT_NE(two->generation, one->generation);
  EXPECT_EQ(share_.Hold(one->generation), nullptr);
  EXPECT_EQ(gpu_.Take(*one, 20).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(gpu_.Take(*two, 20).ok());
  EXPECT_EQ(gpu_.alive(), 1U);
  EXPECT_EQ(share_.Put({}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(share_.Put({torch::ones({3, 2}).t()}).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DeviceShareTest, WhatIsHeldStaysWhenALargerCopyComes) {
  const auto small = share_.Put({torch::full({4}, 3.0)});
  ASSERT_TRUE(small.ok()) << small.status();
  auto held = share_.Hold(small->generation), twice = share_.Hold(small->generation);
  const auto large = share_.Put({torch::ones({400})});
  ASSERT_TRUE(large.ok()) << large.status();
  EXPECT_NE(large->handle, small->handle);
  EXPECT_EQ(gpu_.alive(), 2U);
  const auto taken = gpu_.Take(*small, 16);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->view(torch::kFloat32)[3].item<float>(), 3);
  held.reset();
  EXPECT_EQ(gpu_.alive(), 2U);
  twice.reset();
  EXPECT_EQ(gpu_.alive(), 1U);
  // Nobody holds what comes next: it goes before there is a second one.
  ASSERT_TRUE(share_.Put({torch::ones({4000})}).ok());
  EXPECT_EQ(gpu_.alive(), 1U);
}

TEST_F(DeviceShareTest, WhatIsHeldOutlivesItsOwner) {
  auto owner = std::make_unique<DeviceShare>(gpu_.allocator());
  const auto name = owner->Put({torch::ones({4})});
  ASSERT_TRUE(name.ok()) << name.status();
  auto held = owner->Hold(name->generation);
  owner.reset();
  EXPECT_TRUE(gpu_.Take(*name, 16).ok());
  held.reset();
  EXPECT_EQ(gpu_.alive(), 0U);
}

TEST_F(DeviceShareTest, TheHostsOwnMemoryIsNotSharedAsAGpus) {
  DeviceShare share;
  EXPECT_EQ(share.Put({torch::ones({4})}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(share.Hold(1), nullptr);
}

}  // namespace
}  // namespace rlhf::model
