// NCCL through c10d: a group of one, and of as many ranks as there are devices, each a thread with its own device.
#include "learner/collective.h"

#include <thread>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/gpu/gpu_test.h"

namespace rlhf::learner {
namespace {

using NcclTest = GpuTest;

// What every rank does; errors as text.
std::string Work(int rank, int world, int port, torch::Device device) {
  GroupOptions options;
  options.rank = rank;
  options.world_size = world;
  options.prefix = "test/1/";
  options.store_host = "127.0.0.1";
  options.store_port = port;
  options.timeout = absl::Seconds(60);
  options.device = device;
  auto group = ConnectGroup(options);
  if (!group.ok()) return group.status().ToString();
  const auto all = torch::TensorOptions().dtype(torch::kFloat32).device(device);
  torch::Tensor sum = torch::full({1000}, static_cast<double>(rank + 1), all);
  if (const absl::Status status = (*group)->AllReduceSum(sum); !status.ok()) return status.ToString();
  if (!torch::equal(sum.to(torch::kCPU), torch::full({1000}, world * (world + 1) / 2.0))) return "another sum";
  torch::Tensor sent = torch::full({10}, static_cast<double>(rank), all.dtype(torch::kFloat64));
  if (const absl::Status status = (*group)->Broadcast(sent, world - 1); !status.ok()) return status.ToString();
  if (sent[3].item<double>() != world - 1) return "another broadcast";
  std::vector<std::unique_ptr<Collective::Pending>> pending;
  std::vector<torch::Tensor> parts;
  for (int i = 0; i < 4; ++i) {
    parts.push_back(torch::full({1 << 16}, static_cast<double>(i), all));
    auto started = (*group)->StartAllReduceSum(parts.back());
    if (!started.ok()) return started.status().ToString();
    pending.push_back(*std::move(started));
  }
  for (size_t i = 0; i < pending.size(); ++i) {
    if (const absl::Status status = pending[i]->Wait(); !status.ok()) return status.ToString();
    if (parts[i].max().item<float>() != static_cast<float>(i) * static_cast<float>(world)) return "another late sum";
  }
  torch::Tensor scattered = torch::arange(8 * world, all), gathered = torch::zeros({8 * world}, all);
  auto started = (*group)->StartReduceScatterSum(scattered);
  if (!started.ok()) return started.status().ToString();
  if (const absl::Status status = (*started)->Wait(); !status.ok()) return status.ToString();
  const torch::Tensor own = scattered.narrow(0, 8 * rank, 8);
  if (!torch::equal(own, torch::arange(8 * rank, 8 * rank + 8, all) * world)) return "another scattered sum";
  gathered.narrow(0, 8 * rank, 8).fill_(rank + 1);
  if (const absl::Status status = (*group)->AllGather(gathered); !status.ok()) return status.ToString();
  if (gathered.sum().item<float>() != 4.0F * static_cast<float>(world * (world + 1))) return "another gathering";
  const auto agreed = (*group)->Vote(true), refused = (*group)->Vote(rank != world - 1);
  if (!agreed.ok() || !refused.ok()) return "a vote failed";
  return *agreed && !*refused ? "" : "another vote";
}

void ExpectGroup(int world) {
  auto rendezvous = Rendezvous::Host("127.0.0.1", absl::Seconds(60));
  ASSERT_TRUE(rendezvous.ok()) << rendezvous.status();
  std::vector<std::string> errors(static_cast<size_t>(world));
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < world; ++rank) {
    ranks.emplace_back([&, rank] {
      errors[static_cast<size_t>(rank)] =
          Work(rank, world, (*rendezvous)->port(), torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(rank)));
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

TEST_F(NcclTest, AGroupOfOne) {
  ExpectGroup(1);
}

TEST_F(NcclTest, AGroupOfAllDevices) {
  int devices = 1;
  while (devices < 8 && model::ParseDevice(absl::StrCat("cuda:", devices)).ok()) ++devices;
  if (devices == 1) GTEST_SKIP() << "one CUDA device; several are needed";
  ExpectGroup(devices);
}

}  // namespace
}  // namespace rlhf::learner
