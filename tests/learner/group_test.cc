// Ranks are real processes here: forked before LibTorch has threads, joined over Gloo on loopback.
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "learner/collective.h"
#include "learner/trainer.h"
#include "model/weights_io.h"
#include "tests/learner/ranks.h"
#include "tests/learner/specs.h"
#include "tests/testing/ipv6.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {
namespace {

TEST(GroupTest, RanksSumBroadcastAndVote) {
  const auto codes = RunRanks(3, kRanksTimeout, [](Collective* group) {
    torch::Tensor sum = torch::full({5}, static_cast<float>(group->rank() + 1));
    if (!group->AllReduceSum(sum).ok() || sum[4].item<float>() != 6) return 1;
    torch::Tensor value = torch::full({2}, static_cast<float>(group->rank()));
    if (!group->Broadcast(value, 2).ok() || value[0].item<float>() != 2) return 2;
    const auto yes = group->Vote(true), no = group->Vote(group->rank() != 1);
    if (!yes.ok() || !*yes || !no.ok() || *no) return 3;
    auto first = group->StartAllReduceSum(sum), second = group->StartAllReduceSum(value);
    if (!first.ok() || !second.ok() || !(*first)->Wait().ok() || !(*second)->Wait().ok()) return 4;
    return sum[0].item<float>() == 18 && value[0].item<float>() == 6 ? 0 : 5;
  });
  EXPECT_EQ(codes, std::vector<int>({0, 0, 0}));
}

// Where pods have no other addresses.
TEST(GroupTest, RanksMeetOverIpv6) {
  if (!HasIpv6()) GTEST_SKIP() << "this machine has no ::1";
  const auto codes = RunRanks(
      2, kRanksTimeout,
      [](Collective* group) {
        torch::Tensor sum = torch::full({3}, static_cast<float>(group->rank() + 1));
        return group->AllReduceSum(sum).ok() && sum[2].item<float>() == 3 ? 0 : 1;
      },
      "::1");
  EXPECT_EQ(codes, std::vector<int>({0, 0}));
  EXPECT_TRUE(absl::IsInvalidArgument(Rendezvous::Host("a-name.example", kRanksTimeout).status()));
}

TEST(GroupTest, RanksSumTheirOwnPartsAndGatherThem) {
  const auto codes = RunRanks(3, kRanksTimeout, [](Collective* group) {
    const int rank = group->rank();
    // Part p of rank r is 10 · p + r: the sum over ranks is 30 · p + 3.
    torch::Tensor parts = torch::arange(3, torch::kFloat32).mul(10).add(rank).repeat_interleave(2);
    auto sum = group->StartReduceScatterSum(parts);
    if (!sum.ok() || !(*sum)->Wait().ok()) return 1;
    const torch::Tensor own = parts.narrow(0, rank * 2, 2);
    if (own[0].item<float>() != 30.0F * rank + 3 || own[1].item<float>() != 30.0F * rank + 3) return 2;
    for (const torch::Dtype dtype : {torch::kFloat32, torch::kBFloat16}) {
      torch::Tensor all = torch::full({6}, -1, dtype);
      all.narrow(0, rank * 2, 2).fill_(rank + 1);
      if (!group->AllGather(all).ok()) return 3;
      if (!torch::equal(all, torch::tensor({1, 1, 2, 2, 3, 3}).to(dtype))) return 4;
    }
    return 0;
  });
  EXPECT_EQ(codes, std::vector<int>({0, 0, 0}));
}

TEST(GroupTest, ADeadRankIsNoticedByTheOthers) {
  const auto codes = RunRanks(3, absl::Seconds(5), [](Collective* group) {
    torch::Tensor sum = torch::ones({4});
    if (!group->AllReduceSum(sum).ok()) return 1;
    if (group->rank() == 2) _exit(7);
    const absl::Time start = absl::Now();
    const absl::Status status = group->AllReduceSum(sum);
    if (!absl::IsUnavailable(status)) return 2;
    return absl::Now() - start < absl::Seconds(8) ? 0 : 3;
  });
  EXPECT_EQ(codes, std::vector<int>({0, 0, 7}));
}

TEST(GroupTest, AbortWakesABlockedRank) {
  const auto codes = RunRanks(2, kRanksTimeout, [](Collective* group) {
    if (group->rank() == 1) {
      absl::SleepFor(absl::Seconds(3));  // takes no part for longer than the abort may take
      _exit(0);
    }
    std::thread aborter([&] {
      absl::SleepFor(absl::Milliseconds(200));
      group->Abort();
    });
    const absl::Time start = absl::Now();
    torch::Tensor sum = torch::ones({4});
    const absl::Status status = group->AllReduceSum(sum);
    aborter.join();
    _exit(absl::IsUnavailable(status) && absl::Now() - start < absl::Seconds(2) ? 0 : 1);
    return 0;
  });
  EXPECT_EQ(codes, std::vector<int>({0, 0}));
}

// Samples as rollout workers and scorers would hand them in, equal on every rank.
std::vector<v1::Sample> MadeUpSamples(int n) {
  std::vector<v1::Sample> samples;
  for (int i = 0; i < n; ++i) {
    v1::Sample& sample = samples.emplace_back();
    sample.mutable_id()->set_step(1);
    sample.mutable_id()->set_ordinal(i);
    for (const int token : {1, 70, 80 + i}) sample.add_prompt_tokens(token);
    for (int t = 0; t < 3 + i % 3; ++t) {
      sample.add_response_tokens(90 + 7 * i + t);
      sample.add_behaviour_log_probs(-5.6F);
      sample.mutable_score()->add_reference_log_probs(-5.6F);
    }
    sample.set_finish_reason(v1::END_OF_TEXT);
    sample.mutable_score()->set_total(i % 4);
  }
  return samples;
}

// GRPO with all that the policy's loss may hold.
v1::JobSpec GroupsJob(int micro_batch_tokens) {
  v1::JobSpec job = PpoJob(4, micro_batch_tokens);
  v1::PpoSpec* spec = job.mutable_ppo();
  spec->set_samples_per_prompt(2);
  spec->set_minibatch_size(4);
  spec->set_advantage(v1::GRPO);
  spec->set_whiten_advantages(false);
  spec->mutable_kl()->set_form(v1::KL_LOSS_K3);
  spec->mutable_kl()->set_coefficient(0.5);
  spec->set_entropy_coefficient(0.02);
  spec->mutable_policy_optimizer()->set_epsilon(1e-4);  // the last bits of small gradients stay small
  return job;
}

// Ranks × micro-batches leave the result as it is: the same data gives the same weights, to rounding.
TEST(GroupTest, RanksAndMicroBatchesDoNotChangeTheResult) {
  ScratchDir dir;
  MakeApart([&dir] { MakeTinyModel(dir.File("model"), 1); });
  ASSERT_FALSE(testing::Test::HasFatalFailure());
  ASSERT_TRUE(
      WriteFileDurably(
          dir.File("data.jsonl"),
          "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n{\"prompt\":\"the dog\",\"response\":\" sat\"}\n"
          "{\"prompt\":\"red\",\"response\":\" blue green\"}\n")
          .ok());
  const auto train = [&](const std::string& kind, int micro_batch_tokens, const std::string& out) {
    return [&dir, kind, micro_batch_tokens, out](Collective* group) {
      TrainerInputs inputs;
      inputs.spec = kind == "sft" ? SftJob(3, micro_batch_tokens) : GroupsJob(micro_batch_tokens);
      inputs.local = {{"model", dir.File("model")}, {"data", dir.File("data.jsonl")}};
      auto trainer = Trainer::Create(inputs);
      if (!trainer.ok()) return 1;
      (*trainer)->SetCollective(group);
      for (int64_t step = 1; step <= 3; ++step) {
        const auto result = (*trainer)->RunStep(step, kind == "sft" ? std::vector<v1::Sample>() : MadeUpSamples(8));
        if (!result.ok() || !result->trained) return 2;
      }
      if (group->rank() == 0 && !MakeDirs(dir.File(out)).ok()) return 3;
      return (*trainer)->Finish(dir.File(out)).ok() ? 0 : 4;
    };
  };
  for (const std::string kind : {"sft", "grpo"}) {
    ASSERT_EQ(RunRanks(1, kRanksTimeout, train(kind, 8192, kind + " one")), std::vector<int>({0}));
    ASSERT_EQ(RunRanks(1, kRanksTimeout, train(kind, 16, kind + " one_by_parts")), std::vector<int>({0}));
    ASSERT_EQ(RunRanks(2, kRanksTimeout, train(kind, 8192, kind + " two")), std::vector<int>({0, 0}));
    ASSERT_EQ(RunRanks(3, kRanksTimeout, train(kind, 16, kind + " three_by_parts")), std::vector<int>({0, 0, 0}));
  }
  // This process computes nothing before its last fork.
  for (const std::string kind : {"sft", "grpo"}) {
    const auto start = model::LoadModel(dir.File("model")), expected = model::LoadModel(dir.File(kind + " one"));
    ASSERT_TRUE(start.ok() && expected.ok()) << expected.status();
    for (const char* other : {" one_by_parts", " two", " three_by_parts"}) {
      const auto found = model::LoadModel(dir.File(kind + other));
      ASSERT_TRUE(found.ok()) << found.status();
      for (size_t i = 0; i < (*expected)->named_parameters().size(); ++i) {
        const torch::Tensor a = (*expected)->named_parameters()[i].second.detach(),
                            b = (*found)->named_parameters()[i].second.detach();
        EXPECT_FALSE(torch::equal(a, (*start)->named_parameters()[i].second)) << kind;
        EXPECT_LE(((a - b).norm() / a.norm()).item<double>(), 1e-5)
            << kind << other << " " << (*expected)->named_parameters()[i].first;
      }
    }
  }
}

// Layers are computed again while the sums over ranks start, bucket by bucket.
TEST(GroupTest, GradientCheckpointingEndsInTheSameWeights) {
  ScratchDir dir;
  MakeApart([&dir] { MakeTinyModel(dir.File("model"), 1); });
  ASSERT_FALSE(testing::Test::HasFatalFailure());
  ASSERT_TRUE(WriteFileDurably(dir.File("data.jsonl"),
                               "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n{\"prompt\":\"the "
                               "dog\",\"response\":\" sat\"}\n")
                  .ok());
  const auto train = [&](bool ppo, bool checkpointed, const std::string& out) {
    return [&dir, ppo, checkpointed, out](Collective* group) {
      TrainerInputs inputs;
      inputs.spec = ppo ? PpoJob(8, 16) : SftJob(2, 16);
      if (ppo) {
        inputs.spec.mutable_ppo()->set_gradient_checkpointing(checkpointed);
      } else {
        inputs.spec.mutable_sft()->set_gradient_checkpointing(checkpointed);
      }
      inputs.local = {{"model", dir.File("model")}, {"data", dir.File("data.jsonl")}};
      auto trainer = Trainer::Create(inputs);
      if (!trainer.ok()) return 1;
      if ((*trainer)->model().gradient_checkpointing() != checkpointed) return 2;
      (*trainer)->SetCollective(group);
      for (int64_t step = 1; step <= 2; ++step) {
        const auto result = (*trainer)->RunStep(step, ppo ? MadeUpSamples(8) : std::vector<v1::Sample>());
        if (!result.ok() || !result->trained) return 3;
      }
      if (group->rank() == 0 && !MakeDirs(dir.File(out)).ok()) return 4;
      return (*trainer)->Finish(dir.File(out)).ok() ? 0 : 5;
    };
  };
  for (const bool ppo : {false, true}) {
    const std::string kind = ppo ? "ppo" : "sft";
    ASSERT_EQ(RunRanks(2, kRanksTimeout, train(ppo, false, kind)), std::vector<int>({0, 0}));
    ASSERT_EQ(RunRanks(2, kRanksTimeout, train(ppo, true, kind + "_checkpointed")), std::vector<int>({0, 0}));
  }
  // This process computes nothing before its last fork.
  for (const std::string kind : {"sft", "ppo"}) {
    const auto start = model::LoadModel(dir.File("model")), expected = model::LoadModel(dir.File(kind)),
               found = model::LoadModel(dir.File(kind + "_checkpointed"));
    ASSERT_TRUE(start.ok() && expected.ok() && found.ok()) << expected.status() << found.status();
    for (size_t i = 0; i < (*expected)->named_parameters().size(); ++i) {
      const auto& [name, parameter] = (*expected)->named_parameters()[i];
      const torch::Tensor a = parameter.detach(), b = (*found)->named_parameters()[i].second.detach();
      EXPECT_FALSE(torch::equal(a, (*start)->named_parameters()[i].second)) << kind << " " << name;
      EXPECT_LE((a - b).abs().max().item<double>(), 1e-6) << kind << " " << name;
    }
  }
}

}  // namespace
}  // namespace rlhf::learner
