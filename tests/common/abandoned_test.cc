// What killed processes leave behind goes; what somebody still writes, or uses, stays.
#include "common/abandoned.h"

#include <chrono>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

namespace fs = std::filesystem;

class AbandonedTest : public testing::Test {
 protected:
  // A file, with its folders, written so many hours ago; its folders are as old.
  void Put(const std::string& name, int hours) {
    ASSERT_TRUE(MakeDirs(fs::path(dir_.File(name)).parent_path().string()).ok());
    ASSERT_TRUE(WriteFileDurably(dir_.File(name), "x").ok());
    const auto then = fs::file_time_type::clock::now() - std::chrono::hours(hours);
    for (fs::path path = dir_.File(name); path != dir_.path(); path = path.parent_path())
      fs::last_write_time(path, then);
  }
  bool Has(const std::string& name) const { return fs::exists(dir_.File(name)); }
  static bool None(const std::string&) { return false; }

  ScratchDir dir_;
};

TEST_F(AbandonedTest, WhatNobodyHasWrittenInGoes) {
  Put("killed/deep/down/weights", 25);
  Put("killed-file", 25);
  Put("young/weights", 23);
  EXPECT_EQ(RemoveAbandoned(dir_.path(), absl::Hours(24), None), 2);
  EXPECT_FALSE(Has("killed"));
  EXPECT_FALSE(Has("killed-file"));
  EXPECT_TRUE(Has("young/weights"));
  EXPECT_EQ(RemoveAbandoned(dir_.File("nowhere"), absl::Hours(24), None), 0);
}

TEST_F(AbandonedTest, OneYoungFileAnywhereKeepsAll) {
  Put("live/old", 48);
  Put("live/deep/young", 1);
  fs::last_write_time(dir_.File("live"), fs::file_time_type::clock::now() - std::chrono::hours(48));
  fs::last_write_time(dir_.File("live/deep"), fs::file_time_type::clock::now() - std::chrono::hours(48));
  EXPECT_EQ(RemoveAbandoned(dir_.path(), absl::Hours(24), None), 0);
  EXPECT_TRUE(Has("live/old"));
}

TEST_F(AbandonedTest, WhatALinkLeadsToSaysNothingOfIt) {
  Put("killed/old", 48);
  fs::create_symlink(dir_.File("shared"), dir_.File("killed/link"));
  fs::last_write_time(dir_.File("killed"), fs::file_time_type::clock::now() - std::chrono::hours(48));
  Put("shared", 1);
  EXPECT_EQ(RemoveAbandoned(dir_.path(), absl::Hours(24), None), 1);
  EXPECT_FALSE(Has("killed"));
  EXPECT_TRUE(Has("shared"));
}

TEST_F(AbandonedTest, WhatIsWantedStays) {
  Put("mine/old", 48);
  Put("other/old", 48);
  EXPECT_EQ(RemoveAbandoned(dir_.path(), absl::Hours(24), [](const std::string& name) { return name == "mine"; }), 1);
  EXPECT_TRUE(Has("mine/old"));
}

TEST_F(AbandonedTest, AWorkFolderIsEmptiedUnlessAnotherProcessUsesIt) {
  Put("work/job-checkpoint-3/weights", 0);
  auto first = WorkFolder::Take(dir_.File("work"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->removed(), 1);
  EXPECT_FALSE(Has("work/job-checkpoint-3"));
  Put("work/job-checkpoint-4/weights", 0);
  {
    const auto second = WorkFolder::Take(dir_.File("work"));
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_EQ((*second)->removed(), 0);
    // Who comes back beside the second does not take away what that one writes.
    first->reset();
    const auto third = WorkFolder::Take(dir_.File("work"));
    ASSERT_TRUE(third.ok()) << third.status();
    EXPECT_TRUE(Has("work/job-checkpoint-4/weights"));
  }
  const auto last = WorkFolder::Take(dir_.File("work"));
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_FALSE(Has("work/job-checkpoint-4"));
}

}  // namespace
}  // namespace rlhf
