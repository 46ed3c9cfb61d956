// Memory shared by files: what is reserved, who may map it, and that nothing is left.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/shared_memory.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class SharedMemoryTest : public testing::Test {
 protected:
  // Any folder will do: only how fast it is differs.
  const std::string& dir_path() const { return dir_.path(); }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_path()))
      names.push_back(entry.path().filename().string());
    return names;
  }
  std::unique_ptr<SharedMemory> Make(uint64_t size) const {
    auto memory = SharedMemory::Create(dir_path(), size);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : nullptr;
  }
  absl::StatusCode OpenCode(const std::string& name, uint64_t size) const {
    return MappedMemory::Open(dir_path(), name, size).status().code();
  }
  ScratchDir dir_;
};

TEST_F(SharedMemoryTest, WhatOneWritesTheOtherReadsAlsoAfterTheFileIsGone) {
  auto memory = Make(100'000);
  ASSERT_NE(memory, nullptr);
  EXPECT_THAT(Files(), ElementsAre(memory->name()));
  struct stat found = {};
  ASSERT_EQ(stat((dir_path() + "/" + memory->name()).c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0400u);
  std::fill(memory->bytes().begin(), memory->bytes().end(), uint8_t{7});
  const auto mapped = MappedMemory::Open(dir_path(), memory->name(), 100'000);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  memory.reset();
  EXPECT_THAT(Files(), IsEmpty());
  EXPECT_EQ((*mapped)->bytes().size(), 100'000u);
  EXPECT_THAT((*mapped)->bytes(), testing::Each(7));
}

TEST_F(SharedMemoryTest, NamesDiffer) {
  const auto one = Make(1), other = Make(1);
  EXPECT_NE(one->name(), other->name());
}

TEST_F(SharedMemoryTest, OnlyAWholeFileOfThisUserAloneIsMapped) {
  const auto memory = Make(8192);
  const std::string path = dir_path() + "/" + memory->name();
  EXPECT_EQ(OpenCode(memory->name(), 8193), absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(chmod(path.c_str(), 0440), 0);
  EXPECT_EQ(OpenCode(memory->name(), 8192), absl::StatusCode::kFailedPrecondition) << "others could read it";
  ASSERT_EQ(chmod(path.c_str(), 0400), 0);
  EXPECT_EQ(OpenCode(memory->name(), 8192), absl::StatusCode::kOk);
  EXPECT_EQ(OpenCode("rlhf-weights-00000000000000000000000000000000", 8192), absl::StatusCode::kNotFound);
  for (const char* name : {"", "/etc/passwd", "rlhf-weights-../../../etc/passwd", "rlhf-weights-0"})
    EXPECT_EQ(OpenCode(name, 8192), absl::StatusCode::kInvalidArgument) << name;
  // A link to another file, and a file with a hole: reading it could fail where the volume is full.
  const std::string link = "rlhf-weights-11111111111111111111111111111111",
                    hole = "rlhf-weights-22222222222222222222222222222222";
  ASSERT_EQ(symlink(path.c_str(), (dir_path() + "/" + link).c_str()), 0);
  EXPECT_NE(OpenCode(link, 8192), absl::StatusCode::kOk);
  const int fd = open((dir_path() + "/" + hole).c_str(), O_CREAT | O_RDWR, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, 1 << 20), 0);
  close(fd);
  EXPECT_EQ(OpenCode(hole, 1 << 20), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SharedMemoryTest, WhatDoesNotFitIsAnErrorAndLeavesNothing) {
  EXPECT_EQ(SharedMemory::Create(dir_path(), uint64_t{1} << 60).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(SharedMemory::Create(dir_path(), 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(SharedMemory::Create(dir_path() + "/none", 1).ok());
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(SharedMemoryTest, WhatAKilledProcessLeftIsRemovedAndNothingElse) {
  const auto alive = Make(4096);
  std::ofstream(dir_path() + "/rlhf-weights-of-somebody-else") << "not one of these files";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const auto left = SharedMemory::Create(dir_path(), 4096);
    if (!left.ok() || write(ready[1], "r", 1) != 1) _exit(1);
    while (true) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  EXPECT_EQ(Files().size(), 3u);
  EXPECT_EQ(RemoveStaleSharedMemory(dir_path()), 0) << "both owners live";
  ASSERT_EQ(kill(child, SIGKILL), 0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  close(ready[0]);
  close(ready[1]);
  EXPECT_EQ(RemoveStaleSharedMemory(dir_path()), 1);
  EXPECT_THAT(Files(), testing::UnorderedElementsAre(alive->name(), "rlhf-weights-of-somebody-else"));
  EXPECT_EQ(RemoveStaleSharedMemory(dir_path() + "/none"), 0);
}

TEST_F(SharedMemoryTest, WhatAnotherMadeIsNotStale) {
  const std::string odd = "rlhf-weights-" + std::string(32, 'z'), theirs = "rlhf-weights-" + std::string(32, 'a');
  for (const std::string& name : {odd, theirs}) std::ofstream(dir_path() + "/" + name) << "x";
  if (chown((dir_path() + "/" + theirs).c_str(), geteuid() + 1, static_cast<gid_t>(-1)) != 0) {
    ASSERT_TRUE(std::filesystem::remove(dir_path() + "/" + theirs)) << "only root may give a file away";
  }
  const size_t files = Files().size();
  EXPECT_EQ(RemoveStaleSharedMemory(dir_path()), 0);
  EXPECT_EQ(Files().size(), files);
}

TEST(SharedMemoryDir, IsAsTheFlagSays) {
  EXPECT_EQ(SharedMemoryDirOf("none"), "");
  EXPECT_EQ(SharedMemoryDirOf("/somewhere"), "/somewhere");
  EXPECT_EQ(HostIdentity(), HostIdentity());
  EXPECT_EQ(HostIdentity().find('\n'), std::string::npos);
}

}  // namespace
}  // namespace rlhf
