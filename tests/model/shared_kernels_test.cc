// The bodies that CUDA's kernels share with the host, run on the host: the sampler by threads that stand for a block's,
// attention over parts of the keys against the CPU's own kernel.
#include <pthread.h>

#include <cmath>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "model/decode_graphs.h"
#include "model/device.h"
#include "model/kernels/sample_row.h"
#include "model/kernels/softmax_partial.h"
#include "model/sampler.h"

namespace rlhf::model {
namespace {

using kernels::AttentionShape;
using kernels::SampledRow;
using kernels::SampleRequest;

// Threads of the host as sample_row.h's Group.
class Team {
 public:
  explicit Team(int size) : doubles_(size), floats_(size), ints_(size) {
    pthread_barrier_init(&barrier_, nullptr, static_cast<unsigned>(size));
  }
  ~Team() { pthread_barrier_destroy(&barrier_); }
  class Member {
   public:
    Member(Team* team, int rank) : team_(team), rank_(rank) {}
    int64_t rank() const { return rank_; }
    int64_t size() const { return static_cast<int64_t>(team_->doubles_.size()); }
    double Sum(double value) {
      double sum = 0;
      Share(&team_->doubles_, value, [&](size_t, double other) { sum += other; });
      return sum;
    }
    void SumThree(double* values) {
      for (int i = 0; i < 3; ++i) values[i] = Sum(values[i]);
    }
    float Max(float value) {
      float highest = value;
      Share(&team_->floats_, value, [&](size_t, float other) { highest = std::max(highest, other); });
      return highest;
    }
    int32_t Min(int32_t value) {
      int32_t least = value;
      Share(&team_->ints_, value, [&](size_t, int32_t other) { least = std::min(least, other); });
      return least;
    }
    double Before(double value) {
      double sum = 0;
      Share(&team_->doubles_, value, [&](size_t rank, double other) {
        if (rank < static_cast<size_t>(rank_)) sum += other;
      });
      return sum;
    }

   private:
    template <class T, class Fn>
    void Share(std::vector<T>* all, T value, const Fn& fn) {
      (*all)[static_cast<size_t>(rank_)] = value;
      pthread_barrier_wait(&team_->barrier_);
      for (size_t i = 0; i < all->size(); ++i) fn(i, (*all)[i]);
      pthread_barrier_wait(&team_->barrier_);
    }
    Team* team_;
    int rank_;
  };

 private:
  pthread_barrier_t barrier_;  // sleeps, where the library's spins
  std::vector<double> doubles_;
  std::vector<float> floats_;
  std::vector<int32_t> ints_;
};

// Every row of the logits, by `size` threads; that all of them return the same is asserted.
std::vector<SampledRow> DrawByTeam(const torch::Tensor& logits, const std::vector<SampleRequest>& requests, int size) {
  const int64_t rows = logits.size(0), width = logits.size(1);
  Team team(size);
  std::vector<float> exps(static_cast<size_t>(width));
  std::vector<std::vector<SampledRow>> drawn(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      Team::Member member(&team, rank);
      for (int64_t row = 0; row < rows; ++row) {
        drawn[static_cast<size_t>(rank)].push_back(kernels::SampleRow(
            member, logits.data_ptr<float>() + row * width, width, requests[static_cast<size_t>(row)], exps.data()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& other : drawn) {
    for (size_t i = 0; i < other.size(); ++i) EXPECT_EQ(other[i].id, drawn[0][i].id) << "row " << i;
  }
  return drawn[0];
}

struct Draws {
  std::vector<SamplingParams> params;
  std::vector<NoiseKey> keys;
  std::vector<uint32_t> positions;
  std::vector<SampleRequest> requests;
  void Add(const SamplingParams& one) {
    NoiseKey key;
    key.seed = 0x123456789ULL;
    key.stream = 3;
    key.ordinal = static_cast<uint32_t>(params.size());
    params.push_back(one);
    keys.push_back(key);
    positions.push_back(7);
    SampleRequest& request = requests.emplace_back();
    request.noise = NoiseOf(key, 7);
    request.greedy = one.temperature <= 0 ? 1 : 0;
    request.inverse_temperature = request.greedy != 0 ? 1.0F : static_cast<float>(1 / one.temperature);
    request.top_k = one.top_k;
    request.top_p = one.top_p;
  }
};

void ExpectSame(const torch::Tensor& logits, const Draws& draws, int size) {
  const std::vector<SampledToken> plain = Sample(logits, draws.params, draws.keys, draws.positions);
  const std::vector<SampledRow> found = DrawByTeam(logits, draws.requests, size);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(found[i].id, plain[i].id) << "row " << i << ", temperature " << draws.params[i].temperature << ", top-p "
                                        << draws.params[i].top_p << ", top-k " << draws.params[i].top_k;
    EXPECT_NEAR(found[i].log_prob, plain[i].log_prob, 1e-5) << "row " << i;
    EXPECT_NEAR(found[i].log_kept_mass, plain[i].log_kept_mass, 1e-5) << "row " << i;
  }
}

const std::vector<SamplingParams> kKinds = {
    {.temperature = 1},
    {.temperature = 0},
    {.temperature = 0.7},
    {.temperature = 1, .top_k = 1},
    {.temperature = 1.3, .top_k = 17},
    {.temperature = 1, .top_p = 0.9},
    {.temperature = 1, .top_p = 0.05},
    {.temperature = 0.8, .top_p = 0.6, .top_k = 40},
    {.temperature = 1, .top_k = 100'000},
    {.temperature = 2, .top_p = 0.999},
};

TEST(SharedKernelsTest, ABlocksThreadsDrawWhatTheSamplerDraws) {
  torch::manual_seed(4);
  for (const int size : {1, 3}) {
    for (const int64_t width : {3, 50, 1000}) {
      Draws draws;
      for (int i = 0; i < 20; ++i) draws.Add(kKinds[static_cast<size_t>(i) % kKinds.size()]);
      ExpectSame(torch::randn({20, width}) * 3, draws, size);
    }
  }
}

TEST(SharedKernelsTest, EqualProbabilitiesAreOrderedByTheirIds) {
  // Two levels: 10 tokens of the higher, 90 of the lower, in no order.
  torch::Tensor logits = torch::zeros({20, 100});
  logits.index_put_({torch::indexing::Slice(), torch::indexing::Slice(3, 100, 10)}, 1);
  Draws draws;
  for (int i = 0; i < 20; ++i)
    draws.Add({.temperature = 1, .top_p = i % 2 == 0 ? 1.0 : 0.5, .top_k = i % 3 == 0 ? 0 : 5 + 2 * i});
  ExpectSame(logits, draws, 3);
  // Nothing but ties.
  Draws ties;
  for (int i = 0; i < 20; ++i) ties.Add({.temperature = 1, .top_p = 0.3, .top_k = 1 + 3 * i});
  ExpectSame(torch::zeros({20, 100}), ties, 3);
}

TEST(SharedKernelsTest, TokensWithoutProbabilityAreNeverDrawn) {
  torch::Tensor logits = torch::full({20, 64}, -1e9);
  logits.index_put_({torch::indexing::Slice(), 5}, 0);
  logits.index_put_({torch::indexing::Slice(), 60}, 0.5);
  Draws draws;
  for (int i = 0; i < 20; ++i) draws.Add({.temperature = 1, .top_p = i % 2 == 0 ? 1.0 : 0.99, .top_k = i % 4 * 10});
  for (const SampledRow& token : DrawByTeam(logits, draws.requests, 3)) EXPECT_TRUE(token.id == 5 || token.id == 60);
  ExpectSame(logits, draws, 3);
}

TEST(SharedKernelsTest, ARowWithoutNumbersGivesATokenAndNoFiniteProbability) {
  const torch::Tensor logits = torch::full({static_cast<int64_t>(kKinds.size()), 9}, NAN);
  Draws draws;
  for (const SamplingParams& kind : kKinds) draws.Add(kind);
  for (const SampledRow& token : DrawByTeam(logits, draws.requests, 2)) {
    EXPECT_GE(token.id, 0);
    EXPECT_LT(token.id, 9);
    EXPECT_FALSE(std::isfinite(token.log_prob));
  }
}

// One lane that holds a whole row.
struct OneLane {
  unsigned lane() const { return 0; }
  unsigned size() const { return 1; }
  float Sum(float value) const { return value; }
};

// As decode_attention.cu: the keys in parts, each part by warps that take runs in turn, everything merged.
template <class T, int kHeads, int kPer, bool kWhole>
std::vector<float> AttendInParts(const AttentionShape& shape, const torch::Tensor& q, const torch::Tensor& keys,
                                 const torch::Tensor& values, int64_t length, int64_t splits) {
  constexpr int kWarps = 3, kRun = 4;
  const auto dim = static_cast<int>(shape.dim);
  std::vector<float> out;
  for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
    const auto* const key = static_cast<const T*>(keys[kv_head].data_ptr());
    const auto* const value = static_cast<const T*>(values[kv_head].data_ptr());
    float query[kHeads][kPer];
    for (int h = 0; h < kHeads; ++h)
      kernels::LoadRow<OneLane, T, kPer, kWhole>(OneLane(), static_cast<const T*>(q[kv_head * kHeads + h].data_ptr()),
                                                 dim, query[h]);
    std::vector<kernels::SoftmaxPartial<kHeads, kPer>> parts;
    for (int64_t split = 0; split < splits; ++split) {
      int64_t first = 0, last = 0;
      kernels::SplitKeys(length, shape.window, splits, split, kWarps * kRun, &first, &last);
      for (int warp = 0; warp < kWarps; ++warp) {
        kernels::AttendKeys<OneLane, T, kHeads, kPer, kWhole>(OneLane(), query, key, value, dim, first + warp * kRun,
                                                              last, kWarps * kRun, shape.scale, shape.softcap,
                                                              &parts.emplace_back());
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      std::vector<float> moments, weighted;
      for (const auto& part : parts) {
        moments.insert(moments.end(), {part.highest[h], part.sum[h]});
        weighted.insert(weighted.end(), part.weighted[h], part.weighted[h] + dim);
      }
      for (int e = 0; e < dim; ++e)
        out.push_back(
            kernels::MergeParts(moments.data(), weighted.data() + e, dim, static_cast<int64_t>(parts.size())));
    }
  }
  return out;
}

template <class T, int kHeads, int kPer, bool kWhole>
void ExpectAttention(int64_t dim, torch::Dtype dtype, double tolerance) {
  torch::manual_seed(6);
  for (const float softcap : {0.0F, 5.0F}) {
    for (const int64_t window : {0, 7}) {
      for (const int64_t length : {1, 2, 12, 13, 100}) {
        AttentionShape shape;
        shape.kv_heads = 2;
        shape.heads = 2 * kHeads;
        shape.dim = dim;
        shape.scale = 0.4F;
        shape.softcap = softcap;
        shape.window = window;
        const torch::Tensor q = torch::randn({shape.heads, dim}).to(dtype),
                            keys = torch::randn({2, length, dim}).to(dtype),
                            values = torch::randn({2, length, dim}).to(dtype);
        const torch::Tensor wide_q = q.to(torch::kFloat32), wide_keys = keys.to(torch::kFloat32),
                            wide_values = values.to(torch::kFloat32);
        std::vector<float> expected(static_cast<size_t>(shape.heads * dim)),
            scratch(static_cast<size_t>(kernels::RoundUpTo16(length)));
        const kernels::CachedQuery query{wide_q.data_ptr<float>(), 0, length, length, expected.data()};
        kernels::DecodeAttention(shape, &query, 1, wide_keys.data_ptr<float>(), wide_values.data_ptr<float>(),
                                 scratch.data());
        for (const int64_t splits : {1, 3, 32}) {
          const std::vector<float> found =
              AttendInParts<T, kHeads, kPer, kWhole>(shape, q, keys, values, length, splits);
          ASSERT_EQ(found.size(), expected.size());
          for (size_t i = 0; i < found.size(); ++i)
            ASSERT_NEAR(found[i], expected[i], tolerance)
                << "number " << i << " of " << length << " keys in " << splits << " parts, window " << window;
        }
      }
    }
  }
}

TEST(SharedKernelsTest, AttentionInPartsIsTheCpuKernels) {
  ExpectAttention<float, 1, 8, true>(8, torch::kFloat32, 1e-5);
  ExpectAttention<float, 3, 32, false>(20, torch::kFloat32, 1e-5);
  ExpectAttention<c10::BFloat16, 2, 16, true>(16, torch::kBFloat16, 1e-5);
}

TEST(SharedKernelsTest, NothingSeenAttendsToNothing) {
  const AttentionShape shape{.heads = 1, .kv_heads = 1, .dim = 8};
  const torch::Tensor q = torch::ones({1, 8}), none = torch::ones({1, 1, 8});
  for (const float number : AttendInParts<float, 1, 8, true>(shape, q, none, none, /*length=*/0, /*splits=*/2))
    EXPECT_EQ(number, 0);
}

TEST(SharedKernelsTest, PartsCoverWhatIsSeenOnce) {
  for (const int64_t length : {0, 1, 15, 16, 17, 1000}) {
    for (const int64_t window : {0, 1, 20}) {
      for (const int64_t splits : {1, 2, 7, 32}) {
        int64_t next = window > 0 ? std::max<int64_t>(0, length - window) : 0;
        for (int64_t split = 0; split < splits; ++split) {
          int64_t first = 0, last = 0;
          kernels::SplitKeys(length, window, splits, split, 16, &first, &last);
          EXPECT_EQ(first, next);
          EXPECT_LE(first, last);
          next = last;
        }
        EXPECT_EQ(next, length);
      }
    }
  }
}

TEST(GraphSizeTest, ABatchRunsInTheNextLargerGraph) {
  EXPECT_EQ(GraphSize(0), 0);
  EXPECT_EQ(GraphSize(257), 0);
  int64_t before = 0;
  for (int64_t batch = 1; batch <= 256; ++batch) {
    const int64_t size = GraphSize(batch);
    EXPECT_GE(size, batch);
    EXPECT_GE(size, before);
    EXPECT_EQ(GraphSize(size), size);
    before = size;
  }
  EXPECT_EQ(GraphSize(3), 4);
  EXPECT_EQ(GraphSize(9), 16);
  EXPECT_EQ(GraphSize(65), 96);
}

TEST(DeviceTest, ADeviceIsNamedOrRefused) {
  EXPECT_EQ(ParseDevice("cpu")->type(), torch::kCPU);
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "cuda0", "cpu:0"}) {
    const auto device = ParseDevice(text);
    EXPECT_TRUE(absl::IsInvalidArgument(device.status())) << text << ": " << device.status();
  }
  const auto device = ParseDevice("cuda:100");  // no machine has so many
  EXPECT_TRUE(absl::IsFailedPrecondition(device.status())) << device.status();
}

}  // namespace
}  // namespace rlhf::model
