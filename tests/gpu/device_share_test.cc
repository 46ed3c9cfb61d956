// Weights that another process takes within GPU memory: this program runs itself again for the taker.
#include "model/device_share.h"

#include <cstdlib>

#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/durable_file.h"
#include "tests/gpu/gpu_test.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::model {
namespace {

constexpr char kAsked[] = "RLHF_TEST_DEVICE_SHARE";  // FOLDER,HANDLE,GENERATION,SIZE

// The taker's part of the test below; alone it has nothing to take.
TEST(DeviceShareTaker, TakesWhatItIsTold) {
  const char* const asked = std::getenv(kAsked);
  if (asked == nullptr) GTEST_SKIP() << "it is run by DeviceShareTest";
  const std::vector<std::string> parts = absl::StrSplit(asked, ',');
  DeviceShareName name;
  name.handle = absl::HexStringToBytes(parts[1]);
  uint64_t size = 0;
  ASSERT_TRUE(absl::SimpleAtoi(parts[2], &name.generation) && absl::SimpleAtoi(parts[3], &size));
  std::string found;
  for (int i = 0; i < 2; ++i) {  // as for two versions: it is opened and closed each time
    const auto taken = TakeShared(name, size, torch::Device(torch::kCUDA, 0));
    found = taken.ok() ? std::string(static_cast<const char*>(taken->cpu().const_data_ptr()), size)
                       : std::string(absl::StatusCodeToString(taken.status().code()));
  }
  ASSERT_TRUE(WriteFileDurably(absl::StrCat(parts[0], "/taken"), found).ok());
}

class DeviceShareTest : public GpuTest {
 protected:
  // What another process finds.
  std::string Taken(const DeviceShareName& name, uint64_t size) {
    const std::string self = std::filesystem::read_symlink("/proc/self/exe").string(),
                      handle = absl::BytesToHexString(name.handle);
    const CommandResult taker = RunCommand(absl::StrCat(kAsked, "='", dir_.path(), ",", handle, ",", name.generation,
                                                        ",", size, "' '", self, "' --gtest_filter=DeviceShareTaker.*"));
    const auto found = ReadFile(dir_.File("taken"));
    return taker.code == 0 && found.ok() ? *found : taker.output;
  }
  ScratchDir dir_;
};

TEST_F(DeviceShareTest, AnotherProcessTakesTheNewestAndNoOther) {
  DeviceShare share;
  const auto all = torch::TensorOptions().device(device_);
  const std::vector<torch::Tensor> first{torch::arange(1000, all.dtype(torch::kFloat32)),
                                         torch::ones({33}, all.dtype(torch::kBFloat16))};
  const auto bytes_of = [](const std::vector<torch::Tensor>& tensors) {
    std::string out;
    for (const torch::Tensor& tensor : tensors) {
      const torch::Tensor host = tensor.cpu();
      out.append(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
    }
    return out;
  };
  const auto one = share.Put(first);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(Taken(*one, bytes_of(first).size()), bytes_of(first));
  const std::vector<torch::Tensor> second{first[0] * 2, first[1] * 3};
  const auto two = share.Put(second);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->handle, one->handle);
  EXPECT_EQ(Taken(*two, bytes_of(second).size()), bytes_of(second));
  EXPECT_EQ(Taken(*one, bytes_of(first).size()), "NOT_FOUND");
  EXPECT_EQ(Taken({std::string(64, 'x'), 1}, 10), "FAILED_PRECONDITION");
  // A larger model has memory of its own.
  const std::vector<torch::Tensor> larger{torch::rand({1 << 20}, all)};
  const auto three = share.Put(larger);
  ASSERT_TRUE(three.ok()) << three.status();
  EXPECT_EQ(Taken(*three, bytes_of(larger).size()), bytes_of(larger));
}

}  // namespace
}  // namespace rlhf::model
