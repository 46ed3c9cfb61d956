// A share of the optimizer's state on each rank (learners.shard_optimizer_state) against all of it on every rank. Ranks
// are real processes; what they made is compared by the files of their checkpoints, in this process, without LibTorch.
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/safetensors.h"
#include "learner/trainer.h"
#include "model/weights_io.h"
#include "tests/learner/ranks.h"
#include "tests/learner/specs.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_bytes.h"
#include "tests/testing/tiny_model.h"

namespace rlhf::learner {
namespace {

// Relative distances of a checkpoint's tensors: the largest of any tensor.
struct Distance {
  double float32 = 0, bfloat16 = 0;
};

std::vector<double> ValuesOf(const artifact::SafetensorsFile& file, const artifact::TensorInfo& info) {
  const std::vector<uint8_t> bytes = TensorBytes(file, info);
  const size_t size = info.dtype == artifact::DType::kF32 ? 4 : 2;
  std::vector<double> values;
  for (size_t at = 0; at < bytes.size(); at += size) {
    uint32_t bits = 0;  // bfloat16 is a float32's upper half
    std::memcpy(reinterpret_cast<uint8_t*>(&bits) + (4 - size), bytes.data() + at, size);
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    values.push_back(value);
  }
  return values;
}

Distance Compare(const std::string& expected_dir, const std::string& found_dir) {
  Distance distance;
  const auto expected = artifact::SafetensorsFile::Open(expected_dir + "/state.safetensors");
  const auto found = artifact::SafetensorsFile::Open(found_dir + "/state.safetensors");
  EXPECT_TRUE(expected.ok() && found.ok()) << expected.status() << found.status();
  if (!expected.ok() || !found.ok()) return {1, 1};
  EXPECT_EQ((*expected)->tensors().size(), (*found)->tensors().size());
  EXPECT_EQ(*ReadFile(expected_dir + "/state.json"), *ReadFile(found_dir + "/state.json"));
  for (const auto& [name, info] : (*expected)->tensors()) {
    const auto other = (*found)->tensors().find(name);
    if (other == (*found)->tensors().end() || other->second.shape != info.shape || other->second.dtype != info.dtype) {
      ADD_FAILURE() << name << " is missing, of another shape or dtype";
      return {1, 1};
    }
    const std::vector<double> a = ValuesOf(**expected, info), b = ValuesOf(**found, other->second);
    double square = 0, difference = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      square += a[i] * a[i];
      difference += (a[i] - b[i]) * (a[i] - b[i]);
    }
    const double relative = difference == 0 ? 0 : std::sqrt(difference / square);
    double& most = info.dtype == artifact::DType::kF32 ? distance.float32 : distance.bfloat16;
    if (!(relative <= most)) most = relative;
  }
  return distance;
}

class ShardingTest : public testing::Test {
 protected:
  void SetUp() override {
    MakeApart([this] { MakeTinyModel(dir_.File("model"), 1); });
    ASSERT_FALSE(testing::Test::HasFatalFailure());
    std::string pairs;
    for (int i = 0; i < 12; ++i) {
      absl::StrAppend(&pairs, "{\"prompt\":\"the cat ", i, "\",\"chosen\":\" sat\",\"rejected\":\" ran\",",
                      "\"ratings\":{\"clear\":[", i % 3, ",1],\"true\":[2,", i % 2, "]}}\n");
    }
    ASSERT_TRUE(WriteFileDurably(dir_.File("pairs.jsonl"), pairs).ok());
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"),
                                 "{\"prompt\":\"the cat\",\"response\":\" sat on the mat\"}\n"
                                 "{\"prompt\":\"the dog\",\"response\":\" sat\"}\n"
                                 "{\"prompt\":\"red\",\"response\":\" blue green\"}\n")
                    .ok());
  }

  static v1::JobSpec Job(const std::string& kind, bool shard) {
    v1::JobSpec job = kind == "reward heads"                     ? RewardJob()
                      : absl::StrContains(kind, "micro-batches") ? PpoJob(8, 12)
                      : absl::StartsWith(kind, "ppo")            ? PpoJob(8)
                                                                 : SftJob(6, 16);
    // Micro-batches are summed in another order than by a rank that holds all: at a higher rate AdamW carries the last
    // bits of small gradients further.
    if (job.has_sft()) job.mutable_sft()->mutable_optimizer()->set_learning_rate(3e-3);
    if (absl::StrContains(kind, "micro-batches")) {
      job.mutable_ppo()->mutable_policy_optimizer()->set_learning_rate(1e-3);
      job.mutable_ppo()->mutable_critic_optimizer()->set_learning_rate(1e-3);
    }
    if (absl::StartsWith(kind, "sft bfloat16")) job.mutable_sft()->set_precision(v1::BFLOAT16);
    if (kind == "sft lora") job.mutable_sft()->mutable_lora()->set_rank(2);
    job.mutable_learners()->set_shard_optimizer_state(shard);
    if (kind == "ppo rloo lora ptx bfloat16") {
      v1::PpoSpec* ppo = job.mutable_ppo();
      ppo->set_advantage(v1::RLOO);
      ppo->set_samples_per_prompt(2);
      ppo->set_prompts_per_step(4);
      ppo->set_precision(v1::BFLOAT16);
      ppo->set_max_first_minibatch_ratio_error(2e-2);
      ppo->mutable_lora()->set_rank(2);
      ppo->mutable_lora()->set_alpha(2);
      ppo->mutable_ptx()->set_data("data");
      ppo->mutable_ptx()->set_coefficient(0.1);
      ppo->mutable_ptx()->set_batch_size(2);
      ppo->mutable_kl()->set_adaptive(true);
      ppo->mutable_kl()->set_target(1);
      ppo->mutable_kl()->set_horizon(100);
      ppo->mutable_policy_optimizer()->set_warmup_steps(12);  // updates, of which a checkpoint is in the middle
      ppo->mutable_policy_optimizer()->set_schedule(v1::COSINE);
    }
    if (absl::StrContains(kind, "layers")) {
      if (job.has_sft()) job.mutable_sft()->set_gradient_checkpointing(true);
      if (job.has_ppo()) job.mutable_ppo()->set_gradient_checkpointing(true);
      job.mutable_learners()->set_shard_parameters(shard);
    }
    return job;
  }
  // A head for each of two criteria.
  static v1::JobSpec RewardJob() {
    v1::JobSpec job;
    v1::RewardModelSpec* spec = job.mutable_reward_model();
    spec->set_model("model");
    spec->set_data("pairs");
    spec->set_held_out_fraction(0);
    spec->set_epochs(4);
    spec->set_batch_size(6);
    spec->set_micro_batch_tokens(8192);
    spec->set_criterion_heads(true);
    (*spec->mutable_criteria())["clear"] = 1;
    (*spec->mutable_criteria())["true"] = 2;
    Complete(spec->mutable_optimizer(), 1e-3);
    spec->mutable_optimizer()->set_warmup_steps(4);
    return job;
  }
  std::unique_ptr<Trainer> Make(const v1::JobSpec& job) const {
    TrainerInputs inputs;
    inputs.spec = job;
    inputs.local = {
        {"model", dir_.File("model")}, {"data", dir_.File("data.jsonl")}, {"pairs", dir_.File("pairs.jsonl")}};
    auto trainer = Trainer::Create(inputs);
    if (!trainer.ok()) std::fprintf(stderr, "%s\n", trainer.status().ToString().c_str());
    return trainer.ok() ? *std::move(trainer) : nullptr;
  }
  // What a fleet would have sampled and scored: any tokens do.
  static std::vector<v1::Sample> Batch(int64_t step) {
    std::vector<v1::Sample> samples;
    for (int i = 0; i < 8; ++i) {
      v1::Sample& sample = samples.emplace_back();
      sample.mutable_id()->set_step(step);
      sample.mutable_id()->set_ordinal(i);
      for (const int token : {1, 70, 80}) sample.add_prompt_tokens(token);
      for (int t = 0; t < 3; ++t) {
        sample.add_response_tokens(100 + static_cast<int>(step) * 7 + i * 3 + t);
        sample.add_behaviour_log_probs(-5.6F);
        sample.mutable_score()->add_reference_log_probs(-5.5F);
      }
      sample.set_finish_reason(v1::END_OF_TEXT);
      sample.mutable_score()->set_total(i % 3);
    }
    return samples;
  }
  static bool Train(Trainer* trainer, int64_t from, int64_t to) {
    for (int64_t step = from; step <= to; ++step) {
      const auto result = trainer->RunStep(step, Batch(step));
      if (!result.ok() || !result->trained) {
        std::fprintf(stderr, "step %d: %s\n", static_cast<int>(step), result.status().ToString().c_str());
        return false;
      }
    }
    return true;
  }
  bool Save(const Trainer& trainer, const Collective& group, const std::string& out) const {
    const bool shards = trainer.share().count > 1;
    if (group.rank() == 0 && !MakeDirs(dir_.File(out)).ok()) return false;
    return (group.rank() > 0 && !shards) || trainer.SaveCheckpoint(dir_.File(out)).ok();
  }
  bool Note(const std::string& name, const std::string& text) const {
    return WriteFileDurably(dir_.File(name), text).ok();
  }
  std::string Noted(const std::string& name) const {
    const auto text = ReadFile(dir_.File(name));
    return text.ok() ? *text : "nothing is in " + name;
  }

  // Trains steps 1 to `steps` on `world` ranks into the checkpoint `out`.
  std::vector<int> Run(int world, const v1::JobSpec& job, int64_t steps, const std::string& out) {
    return RunRanks(world, kRanksTimeout, [&](Collective* group) {
      const auto trainer = Make(job);
      if (!trainer) return 1;
      trainer->SetCollective(group);
      if (!Train(trainer.get(), 1, steps)) return 2;
      if (!Save(*trainer, *group, out)) return 3;
      const auto digest = trainer->Digest();
      if (!digest.ok() || !Note(absl::StrCat(out, "-digest-", group->rank()), *digest)) return 4;
      // The parameters that this rank would publish are all there.
      return Note(absl::StrCat(out, "-weights-", group->rank()), model::WeightsDigest(trainer->model())) ? 0 : 5;
    });
  }

  ScratchDir dir_;
};

TEST_F(ShardingTest, TheResultIsThatOfTheWholeState) {
  for (const char* kind : {"sft", "sft bfloat16", "sft lora", "ppo", "ppo micro-batches", "sft layers",
                           "sft bfloat16 layers", "ppo layers micro-batches"}) {
    for (const int world : {1, 2, 3}) {
      if (absl::StrContains(kind, "micro-batches") && world < 3) continue;  // the others have some too, but PPO's
      if (absl::StrContains(kind, "layers") && world == 2) continue;        // below
      const std::string about = absl::StrCat(kind, " on ", world), whole = about + " whole", shares = about + " shares";
      const std::vector<int> fine(static_cast<size_t>(world), 0);
      ASSERT_EQ(Run(world, Job(kind, false), 4, whole), fine) << about;
      ASSERT_EQ(Run(world, Job(kind, true), 4, shares), fine) << about;
      const Distance distance = Compare(dir_.File(whole), dir_.File(shares));
      EXPECT_LE(distance.float32, 1e-6) << about;
      EXPECT_LE(distance.bfloat16, 1e-6) << about;
      for (int rank = 1; rank < world; ++rank) {
        EXPECT_EQ(Noted(absl::StrCat(shares, "-digest-", rank)), Noted(shares + "-digest-0")) << about;
        EXPECT_EQ(Noted(absl::StrCat(shares, "-weights-", rank)), Noted(shares + "-weights-0")) << about;
      }
    }
  }
}

TEST_F(ShardingTest, TwoDeterministicRunsEndInEqualBytes) {
  for (const char* kind : {"sft", "sft layers"}) {
    v1::JobSpec job = Job(kind, true);
    job.set_deterministic(true);
    ASSERT_EQ(Run(2, job, 3, "first"), std::vector<int>({0, 0}));
    ASSERT_EQ(Run(2, job, 3, "second"), std::vector<int>({0, 0}));
    EXPECT_EQ(Noted("first-digest-0"), Noted("second-digest-0"));
    EXPECT_EQ(*ReadFile(dir_.File("first/state.safetensors")), *ReadFile(dir_.File("second/state.safetensors")));
  }
}

TEST_F(ShardingTest, ACheckpointGoesOnWithAnyRanksAndWithTheWholeState) {
  for (const char* kind :
       {"sft", "sft bfloat16", "ppo", "sft bfloat16 layers", "ppo rloo lora ptx bfloat16", "reward heads"}) {
    const std::string checkpoint = absl::StrCat(kind, " checkpoint");
    ASSERT_EQ(Run(2, Job(kind, true), 2, checkpoint), std::vector<int>({0, 0})) << kind;
    const auto go_on = [&](int world, bool shard, const std::string& out) {
      return RunRanks(world, kRanksTimeout, [&](Collective* group) {
        const auto trainer = Make(Job(kind, shard));
        if (!trainer) return 1;
        trainer->SetCollective(group);
        if (!trainer->LoadCheckpoint(dir_.File(checkpoint)).ok()) return 2;
        const auto digest = trainer->Digest();
        if (!digest.ok() || !Note(absl::StrCat(out, "-begins-", group->rank()), *digest)) return 3;
        if (!Train(trainer.get(), 3, 4)) return 4;
        return Save(*trainer, *group, out) ? 0 : 5;
      });
    };
    ASSERT_EQ(go_on(1, false, "alone"), std::vector<int>({0}));
    ASSERT_EQ(go_on(2, true, "two"), std::vector<int>({0, 0}));
    ASSERT_EQ(go_on(3, true, "three"), std::vector<int>({0, 0, 0}));
    ASSERT_EQ(go_on(3, false, "three whole"), std::vector<int>({0, 0, 0}));
    for (const char* rank : {"alone-begins-0", "two-begins-1", "three-begins-0", "three-begins-2"})
      EXPECT_EQ(Noted(rank), Noted(checkpoint + "-digest-0")) << kind << " " << rank;
    EXPECT_LE(Compare(dir_.File("three whole"), dir_.File("three")).float32, 1e-6) << kind;
    // Sums over another number of ranks differ in their last bits, the moments are of small numbers, and in bfloat16
    // the activations already differ.
    for (const char* other : {"two", "three"}) {
      if (!absl::StrContains(kind, "bfloat16")) {
        EXPECT_LE(Compare(dir_.File("alone"), dir_.File(other)).float32, 1e-4) << kind << " " << other;
      }
    }
    // Undisturbed, on the same ranks: the same.
    ASSERT_EQ(Run(2, Job(kind, true), 4, "undisturbed"), std::vector<int>({0, 0}));
    EXPECT_EQ(*ReadFile(dir_.File("undisturbed/state.safetensors")), *ReadFile(dir_.File("two/state.safetensors")));
  }
}

TEST_F(ShardingTest, ACheckpointOfTheWholeStateGoesOnAsShares) {
  for (const char* kind : {"sft bfloat16", "ppo layers", "ppo rloo lora ptx bfloat16", "reward heads"}) {
    const std::string checkpoint = absl::StrCat(kind, " checkpoint");
    ASSERT_EQ(Run(2, Job(kind, false), 2, checkpoint), std::vector<int>({0, 0})) << kind;
    ASSERT_EQ(Run(2, Job(kind, false), 4, "undisturbed"), std::vector<int>({0, 0})) << kind;
    for (const int world : {2, 3}) {
      const std::string out = absl::StrCat(kind, " on ", world);
      const auto codes = RunRanks(world, kRanksTimeout, [&](Collective* group) {
        const auto trainer = Make(Job(kind, true));
        if (!trainer) return 1;
        trainer->SetCollective(group);
        if (!trainer->LoadCheckpoint(dir_.File(checkpoint)).ok()) return 2;
        const auto digest = trainer->Digest();
        if (!digest.ok() || !Note(absl::StrCat(out, "-begins-", group->rank()), *digest)) return 3;
        return Train(trainer.get(), 3, 4) && Save(*trainer, *group, out) ? 0 : 4;
      });
      ASSERT_EQ(codes, std::vector<int>(static_cast<size_t>(world), 0)) << out;
      EXPECT_EQ(Noted(absl::StrCat(out, "-begins-0")), Noted(checkpoint + "-digest-0")) << out;
      const Distance distance = Compare(dir_.File("undisturbed"), dir_.File(out));
      if (world == 2) {
        EXPECT_LE(distance.float32, 1e-6) << out;
        EXPECT_LE(distance.bfloat16, 1e-6) << out;
      } else if (!absl::StrContains(kind, "bfloat16")) {
        EXPECT_LE(distance.float32, 1e-4) << out;
      }
    }
  }
}

// Two ranks train; the commit of their third step is not taken; a third rank comes, and all are numbered anew.
TEST_F(ShardingTest, SharesComeTogetherInTheNextGroup) {
  for (const char* kind : {"sft", "sft bfloat16", "ppo", "ppo layers"}) {
    const auto regroup = [&](bool shard, const std::string& out) {
      return RunRanks(3, kRanksTimeout, [&](Collective* all, const NextGroup& next) {
        const int process = all->rank();
        const auto trainer = Make(Job(kind, shard));
        if (!trainer) return 1;
        if (process < 2) {
          const auto pair = next("two", process, 2);
          trainer->SetCollective(pair.get());
          if (!Train(trainer.get(), 1, 2)) return 2;
          const std::string before = model::WeightsDigest(trainer->model());
          if (!Train(trainer.get(), 3, 3)) return 3;
          if (model::WeightsDigest(trainer->model()) == before) return 4;
          trainer->RevertStep();
          trainer->SetCollective(nullptr);
          if (!(trainer->share() == (shard ? Share{process, 2} : Share{}))) return 5;
        }
        const int rank = 2 - process;  // the one that holds nothing is rank 0
        const auto three = next("three", rank, 3);
        trainer->SetCollective(three.get());
        const std::vector<int> owners =
            shard ? OwnersOf({std::nullopt, Share{1, 2}, Share{0, 2}}) : OwnersOf({std::nullopt, Share{}, Share{}});
        if (!trainer->SyncFrom(owners).ok() || !(trainer->share() == (shard ? Share{rank, 3} : Share{}))) return 6;
        const auto digest = trainer->Digest();
        if (!digest.ok() || !Note(absl::StrCat(out, "-digest-", process), *digest)) return 7;
        if (!Note(absl::StrCat(out, "-weights-", process), model::WeightsDigest(trainer->model()))) return 8;
        return Train(trainer.get(), 3, 4) && Save(*trainer, *three, out) ? 0 : 9;
      });
    };
    ASSERT_EQ(Run(2, Job(kind, true), 2, "two steps"), std::vector<int>({0, 0}));
    const std::string shares = absl::StrCat(kind, " shares"), whole = absl::StrCat(kind, " whole");
    ASSERT_EQ(regroup(true, shares), std::vector<int>({0, 0, 0})) << kind;
    ASSERT_EQ(regroup(false, whole), std::vector<int>({0, 0, 0})) << kind;
    for (int process = 0; process < 3; ++process) {
      EXPECT_EQ(Noted(absl::StrCat(shares, "-digest-", process)), Noted("two steps-digest-0")) << kind;
      EXPECT_EQ(Noted(absl::StrCat(shares, "-weights-", process)), Noted("two steps-weights-0")) << kind;
    }
    EXPECT_LE(Compare(dir_.File(whole), dir_.File(shares)).float32, 1e-6) << kind;
  }
}

// One of three is killed inside a step: its share is lost, the others know it, and go on from the checkpoint.
TEST_F(ShardingTest, AKilledRanksShareIsLostAndTheCheckpointIsNot) {
  for (const char* kind : {"sft", "ppo", "ppo layers"}) {
    ASSERT_EQ(Run(3, Job(kind, true), 2, "checkpoint"), std::vector<int>({0, 0, 0}));
    const auto codes = RunRanks(3, absl::Seconds(5), [&](Collective* all, const NextGroup& next) {
      const int process = all->rank();
      const auto trainer = Make(Job(kind, true));
      if (!trainer) return 1;
      trainer->SetCollective(all);
      if (!Train(trainer.get(), 1, 3)) return 2;
      if (process == 1) kill(getpid(), SIGKILL);
      if (!absl::IsUnavailable(trainer->RunStep(4, Batch(4)).status())) return 3;
      trainer->SetCollective(nullptr);
      std::vector<std::optional<Share>> held = {Share{0, 3}, Share{2, 3}};
      if (!(trainer->share() == *held[process == 0 ? 0 : 1]) || !OwnersOf(held).empty()) return 4;
      const auto two = next("two", process == 0 ? 0 : 1, 2);
      trainer->SetCollective(two.get());
      // Without its new share it does not train.
      if (trainer->RunStep(4, Batch(4)).status().code() != absl::StatusCode::kInternal) return 5;
      if (!trainer->LoadCheckpoint(dir_.File("checkpoint")).ok()) return 6;
      return Train(trainer.get(), 3, 4) && Save(*trainer, *two, absl::StrCat(kind, " survivors")) ? 0 : 7;
    });
    ASSERT_EQ(codes, std::vector<int>({0, -SIGKILL, 0})) << kind;
    ASSERT_EQ(Run(1, Job(kind, false), 4, "expected"), std::vector<int>({0}));
    EXPECT_LE(Compare(dir_.File("expected"), dir_.File(absl::StrCat(kind, " survivors"))).float32, 1e-4) << kind;
  }
}

}  // namespace
}  // namespace rlhf::learner
