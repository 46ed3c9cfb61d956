// What `rlhfctl up` and `rlhfctl ranks` do for the processes that they start: their lines.
#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "cli/cluster/output_lines.h"
#include "common/durable_file.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

TEST(OutputLinesTest, WholeLinesAreNamedAndWhatHasNoEndIsPassedOn) {
  ScratchDir dir;
  const int file = open(dir.File("out").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  ASSERT_GE(file, 0);
  const std::string longest(100'000, 'x');
  {
    auto lines = OutputLines::To(file);
    ASSERT_TRUE(lines.ok()) << lines.status();
    const auto one = (*lines)->Open("learner-0"), other = (*lines)->Open("reward-0");
    ASSERT_TRUE(one.ok() && other.ok());
    const auto say = [](int fd, const std::string& text) {
      for (size_t at = 0; at < text.size();) at += static_cast<size_t>(write(fd, text.data() + at, text.size() - at));
    };
    say(*one, "half of ");
    say(*other, "a line\n");
    say(*one, "a line\n\nanother");
    say(*other, longest + "\n");
    close(*one);
    close(*other);
  }
  close(file);
  std::vector<std::string> learner, reward;
  for (const auto line : absl::StrSplit(*ReadFile(dir.File("out")), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(" | ", 1));
    ASSERT_EQ(parts.size(), 2u) << line;
    (parts[0] == "learner-0" ? learner : reward).push_back(parts[1]);
  }
  EXPECT_EQ(learner, std::vector<std::string>({"half of a line", "", "another"}));
  ASSERT_GE(reward.size(), 2u);
  EXPECT_EQ(reward[0], "a line");
  std::string joined;  // a line so long comes in pieces
  for (size_t i = 1; i < reward.size(); ++i) joined += reward[i];
  EXPECT_EQ(joined, longest);
}

}  // namespace
}  // namespace rlhf::cli
