#include "model/kv_cache.h"

#include <gtest/gtest.h>

namespace rlhf::model {
namespace {

artifact::ModelConfig CacheConfig() {
  artifact::ModelConfig config;
  config.num_layers = 2;
  config.num_kv_heads = 3;
  config.head_dim = 4;
  return config;
}

void Fill(KvCache& cache, int slot, double value) {
  for (int layer = 0; layer < 2; ++layer) {
    cache.keys(layer, slot).fill_(value);
    cache.values(layer, slot).fill_(-value);
  }
}

bool Holds(const KvCache& cache, int slot, int64_t tokens, double value) {
  bool all = true;
  for (int layer = 0; layer < 2; ++layer) {
    all = all && cache.keys(layer, slot).narrow(1, 0, tokens).eq(value).all().item<bool>() &&
          cache.values(layer, slot).narrow(1, 0, tokens).eq(-value).all().item<bool>();
  }
  return all;
}

TEST(KvCacheTest, FixedSlotsHoldTheLongestSequence) {
  const KvCache cache(CacheConfig(), 4, 10, torch::kFloat32, torch::kCPU);
  EXPECT_EQ(cache.positions(), 40);
  for (int slot = 0; slot < 4; ++slot) EXPECT_EQ(cache.room(slot), 10);
  EXPECT_EQ(KvCache::BytesPerPosition(CacheConfig(), torch::kFloat32), 2 * 2 * 3 * 4 * 4);
  EXPECT_EQ(KvCache::BytesPerPosition(CacheConfig(), torch::kBFloat16), 2 * 2 * 3 * 4 * 2);
}

TEST(KvCacheTest, RoomsAreDisjointAndFreedOnesJoin) {
  KvCache cache = KvCache::Shared(CacheConfig(), 5, 20, torch::kFloat32, torch::kCPU);
  ASSERT_TRUE(cache.Reserve(0, 6));
  ASSERT_TRUE(cache.Reserve(1, 8));
  ASSERT_TRUE(cache.Reserve(2, 6));
  EXPECT_FALSE(cache.Reserve(3, 1));
  for (int slot = 0; slot < 3; ++slot) Fill(cache, slot, slot + 1);
  for (int slot = 0; slot < 3; ++slot) EXPECT_TRUE(Holds(cache, slot, cache.room(slot), slot + 1));
  // Two stretches of 6 that do not touch hold no 7; with what lies between them freed there is one of 20.
  cache.Release(0);
  cache.Release(2);
  EXPECT_FALSE(cache.Reserve(3, 7));
  EXPECT_TRUE(Holds(cache, 1, 8, 2));
  cache.Release(1);
  cache.Release(4);  // had none
  ASSERT_TRUE(cache.Reserve(3, 20));
  EXPECT_FALSE(cache.Reserve(4, 1));
}

TEST(KvCacheTest, PrefixesAreCopiedBetweenRoomsOfDifferentSizes) {
  KvCache cache = KvCache::Shared(CacheConfig(), 3, 30, torch::kFloat32, torch::kCPU);
  ASSERT_TRUE(cache.Reserve(0, 12));
  ASSERT_TRUE(cache.Reserve(1, 7));
  Fill(cache, 0, 5);
  Fill(cache, 1, 9);
  cache.CopyPrefix(0, 1, 4);
  EXPECT_TRUE(Holds(cache, 1, 4, 5));
  EXPECT_TRUE(cache.keys(0, 1).narrow(1, 4, 3).eq(9).all().item<bool>());
  // A moved room keeps what it holds; the slot that it leaves is empty.
  cache.SetLength(1, 4);
  cache.Move(1, 2);
  EXPECT_EQ(cache.room(1), 0);
  EXPECT_EQ(cache.length(2), 4);
  EXPECT_TRUE(Holds(cache, 2, 4, 5));
}

}  // namespace
}  // namespace rlhf::model
