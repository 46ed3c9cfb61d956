// Which queued samples a rollout worker gets that is too small for some of their prompts, and what finding them costs.
#include "coordinator/scheduling/prompt_room.h"

#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

constexpr SampleKey kNoEnd = {1000, 0, 0};

// A queue as the ledger has it; a sample's ordinal is its prompt.
class Queue {
 public:
  explicit Queue(PromptRoom* room) : room_(room) {}
  void Put(const SampleKey& key) {
    keys.insert(key);
    room_->Queued(key, PromptOf(key));
  }
  std::vector<SampleKey> First(const std::string& worker, size_t most, const SampleKey& end = kNoEnd) {
    return room_->First(worker, keys, end, most, PromptOf);
  }
  static size_t PromptOf(const SampleKey& key) { return static_cast<size_t>(std::get<1>(key)); }
  std::set<SampleKey> keys;

 private:
  PromptRoom* const room_;
};

TEST(PromptRoom, AWorkerGetsInOrderWhatItHasTheRoomFor) {
  PromptRoom room;
  Queue queue(&room);
  for (int prompt = 0; prompt < 5; ++prompt) queue.Put({1, prompt, 0});
  queue.Put({2, 0, 0});
  EXPECT_TRUE(room.Refuse("small", 0, "small: too long", 10));
  EXPECT_FALSE(room.Refuse("small", 0, "small: too long", 10));
  EXPECT_TRUE(room.Refuse("small", 2, "small: too long", 10));
  EXPECT_THAT(queue.First("small", 2), ElementsAre(SampleKey(1, 1, 0), SampleKey(1, 3, 0)));
  EXPECT_THAT(queue.First("small", 9), ElementsAre(SampleKey(1, 1, 0), SampleKey(1, 3, 0), SampleKey(1, 4, 0)));
  EXPECT_THAT(queue.First("large", 2), ElementsAre(SampleKey(1, 0, 0), SampleKey(1, 1, 0)));
  EXPECT_THAT(queue.First("small", 9, {1, 3, 0}), ElementsAre(SampleKey(1, 1, 0)));
  // Leased and handed back, or issued behind where it has looked to.
  queue.keys.erase({1, 1, 0});
  EXPECT_THAT(queue.First("small", 1), ElementsAre(SampleKey(1, 3, 0)));
  queue.Put({1, 1, 0});
  queue.Put({0, 3, 0});
  queue.Put({0, 2, 0});
  EXPECT_THAT(queue.First("small", 2), ElementsAre(SampleKey(0, 3, 0), SampleKey(1, 1, 0)));
  room.Forget("small");
  EXPECT_FALSE(room.AnyRefused());
  EXPECT_THAT(queue.First("small", 1), ElementsAre(SampleKey(0, 2, 0)));
}

TEST(PromptRoom, OneThatHasMoreRoomNowIsAskedAgainForWhatFits) {
  PromptRoom room;
  Queue queue(&room);
  for (int prompt = 0; prompt < 3; ++prompt) queue.Put({1, prompt, 0});
  room.Refuse("small", 0, "", 100);
  room.Refuse("small", 1, "", 200);
  room.Refuse("small", 2, "", /*needs=*/0);  // its --max-tokens
  EXPECT_THAT(queue.First("small", 9), IsEmpty());
  EXPECT_FALSE(room.HasNow("small", 99));
  EXPECT_FALSE(room.HasNow("large", 1000));
  EXPECT_TRUE(room.HasNow("small", 100));
  EXPECT_THAT(queue.First("small", 9), ElementsAre(SampleKey(1, 0, 0)));
  EXPECT_FALSE(room.HasNow("small", 100));
  EXPECT_TRUE(room.HasNow("small", 1000));
  EXPECT_THAT(queue.First("small", 9), ElementsAre(SampleKey(1, 0, 0), SampleKey(1, 1, 0)));
  EXPECT_TRUE(room.RefusedAny("small"));
}

TEST(PromptRoom, TooLargeForAllIsWhatEachOfThemRefused) {
  PromptRoom room;
  room.Refuse("a", 1, "a: 1", 10);
  room.Refuse("a", 2, "a: 2", 10);
  room.Refuse("b", 2, "b: 2", 20);
  EXPECT_THAT(room.RefusedByAll({"a"}), ElementsAre(Pair(1, "a: 1"), Pair(2, "a: 2")));
  EXPECT_THAT(room.RefusedByAll({"a", "b"}), ElementsAre(Pair(2, "b: 2")));
  EXPECT_THAT(room.RefusedByAll({"a", "b", "another"}), IsEmpty());
  EXPECT_THAT(room.RefusedByAll({}), IsEmpty());
}

TEST(PromptRoom, WhateverHappensTheFirstOnesThatFitAreFound) {
  std::mt19937 random(7);
  const auto any = [&random](int below) { return static_cast<int>(random() % static_cast<unsigned>(below)); };
  const std::vector<std::string> workers = {"a", "b", "c"};
  for (int run = 0; run < 50; ++run) {
    PromptRoom room;
    Queue queue(&room);
    std::map<std::string, std::map<size_t, int64_t>> refused;  // what each needs
    for (int turn = 0; turn < 400; ++turn) {
      const std::string& worker = workers[static_cast<size_t>(any(3))];
      const auto prompt = static_cast<size_t>(any(12));
      switch (any(8)) {
        case 0:
          if (room.Refuse(worker, prompt, "", static_cast<int64_t>(prompt))) {
            refused[worker][prompt] = static_cast<int64_t>(prompt);
          }
          break;
        case 1: {
          const int64_t bytes = any(12);
          room.HasNow(worker, bytes);
          std::erase_if(refused[worker], [&](const auto& one) { return one.second > 0 && one.second <= bytes; });
          break;
        }
        case 2:
          if (any(10) == 0) {
            room.Forget(worker);
            refused[worker].clear();
          }
          break;
        case 3:
          if (!queue.keys.empty())
            queue.keys.erase(std::next(queue.keys.begin(), any(static_cast<int>(queue.keys.size()))));
          break;
        case 4:
        case 5:
          queue.Put({1 + any(4), static_cast<int32_t>(prompt), any(3)});
          break;
        default: {
          const SampleKey end = {1 + any(5), 0, 0};
          const auto most = static_cast<size_t>(1 + any(6));
          std::vector<SampleKey> expected;
          for (const SampleKey& key : queue.keys) {
            if (key < end && expected.size() < most && refused[worker].count(Queue::PromptOf(key)) == 0)
              expected.push_back(key);
          }
          ASSERT_EQ(queue.First(worker, most, end), expected) << "run " << run << ", turn " << turn;
        }
      }
    }
  }
}

// Work, not time: a walk past all that it is too small for at every turn would be 10^5 samples each.
TEST(PromptRoom, ASmallWorkersTurnsDoNotWalkThroughALongQueue) {
  constexpr int kSamples = 100'000, kFitsEvery = 100;
  constexpr size_t kMost = 64;
  PromptRoom room;
  Queue queue(&room);
  for (int prompt = 0; prompt < kSamples; ++prompt) queue.Put({1, prompt, 0});
  const auto fits = [](const SampleKey& key) { return std::get<1>(key) % kFitsEvery == 0; };
  int turns = 0;
  size_t done = 0;
  while (true) {
    const std::vector<SampleKey> work = queue.First("small", kMost);
    if (work.empty()) break;
    ++turns;
    for (const SampleKey& key : work) queue.keys.erase(key);
    for (const SampleKey& key : work) {
      if (fits(key)) {
        ++done;
        continue;
      }
      room.Refuse("small", Queue::PromptOf(key), "too long", 1);
      queue.Put(key);
    }
  }
  EXPECT_EQ(done, static_cast<size_t>(kSamples / kFitsEvery));
  EXPECT_THAT(queue.keys, SizeIs(kSamples - done));
  // Found too small for each once: looked at to be leased, and again where it was leased from. The first turn has
  // nobody who is too small for anything, and is not counted.
  EXPECT_LE(room.looked_at(), 2 * kSamples + turns);
  // Then it asks on and on, while others hand back what it fits and what it does not.
  const int64_t before = room.looked_at();
  for (int turn = 0; turn < 1000; ++turn) {
    const SampleKey back = {1, turn * kFitsEvery, 0};
    queue.Put(back);
    queue.keys.erase({1, turn * kFitsEvery + 1, 0});
    queue.Put({1, turn * kFitsEvery + 1, 0});
    ASSERT_THAT(queue.First("small", kMost), ElementsAre(back));
    queue.keys.erase(back);
    ASSERT_THAT(queue.First("small", 1), IsEmpty());
  }
  EXPECT_LE(room.looked_at() - before, 4 * 1000);
}

}  // namespace
}  // namespace rlhf::coordinator
