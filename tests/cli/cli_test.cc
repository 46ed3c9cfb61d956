// rlhfctl's parts that need no coordinator: manifests and secrets, the tree of commands, the memory plan.
#include <sys/stat.h>

#include <filesystem>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "artifact/digest.h"
#include "cli/backup_files.h"
#include "cli/certificate_check.h"
#include "cli/kubernetes.h"
#include "cli/memory_plan.h"
#include "cli/output.h"
#include "cli/secret_file.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

CommandResult Ctl(const std::string& arguments) {
  return RunCommand(absl::StrCat(BinDir(), "/rlhfctl ", arguments, " 2>&1"));
}

// Reasons, comments and answers are others' texts.
TEST(TableTest, ARowIsALineWhateverIsInItsCells) {
  Table table({"JOB", "REASON"});
  table.Row({"one", "cancelled by eve: \x1b]0;mine\x07\ntwo  SUCCEEDED"});
  EXPECT_EQ(table.Text(), "JOB  REASON\none  cancelled by eve: \\x1b]0;mine\\x07\\ntwo  SUCCEEDED\n");
}

TEST(TableTest, ColumnsAreCountedInCharactersAndBytesInTheirUnit) {
  Table table({"A", "B"});
  table.Row({"Grüße", "x"});
  table.Row({"abcdefg", "y"});
  EXPECT_EQ(table.Text(), "A        B\nGrüße    x\nabcdefg  y\n");
  EXPECT_EQ(Bytes(999), "999 B");
  EXPECT_EQ(Bytes(150'000), "150.0 kB");
  EXPECT_EQ(Bytes(150'000'000), "150.0 MB");
  EXPECT_EQ(Bytes(2'500'000'000), "2.50 GB");
}

TEST(CommandTree, CompletionsKnowEveryCommandAndTheirShellsAcceptThem) {
  ScratchDir dir;
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const CommandResult script = Ctl("completion " + shell);
    ASSERT_EQ(script.code, 0) << script.output;
    for (const char* word : {"submit", "drain", "--request-id", "doctor", "pki", "--follow"})
      EXPECT_THAT(script.output, HasSubstr(shell == "fish" && word[0] == '-' ? std::string(word + 2) : word)) << shell;
    ASSERT_TRUE(WriteFileDurably(dir.File(shell), script.output).ok());
  }
  // What bash offers after "rlhfctl workers ".
  const CommandResult offered =
      RunCommand("bash -c 'source " + dir.File("bash") +
                 "; COMP_WORDS=(rlhfctl workers \"\"); COMP_CWORD=2; _rlhfctl; echo ${COMPREPLY[@]}'");
  EXPECT_THAT(offered.output, HasSubstr("list"));
  EXPECT_THAT(offered.output, HasSubstr("cordon"));
  EXPECT_THAT(offered.output, Not(HasSubstr("submit")));
  EXPECT_EQ(Ctl("completion csh").code, 2);
  EXPECT_THAT(Ctl("completion zsh").output, Not(testing::ContainsRegex("host:port|IP:PORT|HOST:PORT")))
      << "a colon ends a word's name";
}

TEST(CommandTree, TheManPageIsWellFormedAndNamesEveryCommand) {
  const CommandResult page = Ctl("man");
  ASSERT_EQ(page.code, 0);
  for (const char* part : {".TH RLHFCTL 1", ".SS workers drain", ".SS pki init", ".SS token create", "EXIT STATUS"})
    EXPECT_THAT(page.output, HasSubstr(part));
}

TEST(Pki, InitKeepsItsCaAndProtectsItsKeys) {
  ScratchDir dir;
  const std::string pki = dir.File("pki");
  ASSERT_EQ(Ctl("pki init --dir " + pki + " --host node-1.example").code, 0);
  const auto ca = ReadFile(pki + "/ca.pem");
  for (const char* key : {"ca.key", "coordinator.key", "learner.key", "rollout-worker.key", "reward-server.key"}) {
    struct stat info {};
    ASSERT_EQ(stat((pki + "/" + key).c_str(), &info), 0) << key;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << key;
  }
  const auto mode = [](const std::string& folder) {
    struct stat info {};
    EXPECT_EQ(stat(folder.c_str(), &info), 0) << folder;
    return info.st_mode & 0777;
  };
  EXPECT_EQ(mode(pki), 0700u);
  ASSERT_EQ(chmod(pki.c_str(), 0750), 0);
  ASSERT_EQ(Ctl("pki init --dir " + pki).code, 0);
  EXPECT_EQ(mode(pki), 0750u) << "shared with a group by whoever it belongs to";
  ASSERT_EQ(RunCommand("umask 022; " + BinDir() + "/rlhfctl pki init --dir " + dir.File("a/b/pki/")).code, 0);
  EXPECT_EQ(mode(dir.File("a/b/pki")), 0700u);
  EXPECT_EQ(mode(dir.File("a/b")), 0755u);
  EXPECT_EQ(*ReadFile(pki + "/ca.pem"), *ca) << "a second init renews certificates, not the CA";
  ASSERT_EQ(Ctl("pki issue --dir " + pki + " --role learner --instance learner-7").code, 0);
  const auto ends = ExpiryOfFile(pki + "/learner-7.pem");
  ASSERT_TRUE(ends.ok()) << ends.status();
  EXPECT_EQ(Ctl("pki issue --dir " + dir.File("none") + " --role learner --instance x").code, 1);
}

TEST(Pki, RenewIssuesWhatIsThereByTheSameCaAndNothingWithoutOne) {
  ScratchDir dir;
  const std::string pki = dir.File("pki");
  ASSERT_EQ(Ctl("pki init --days 2 --dir " + pki + " --host node-1.example --host 10.0.0.1 --host fd00::1").code, 0);
  ASSERT_EQ(Ctl("pki issue --days 2 --dir " + pki + " --role learner --instance learner-7 --host node-7").code, 0);
  ASSERT_EQ(chmod((pki + "/learner-7.key").c_str(), 0640), 0);
  const std::string ca = *ReadFile(pki + "/ca.pem"), key = *ReadFile(pki + "/learner-7.key");
  const CommandResult renewed = Ctl("pki renew --days 30 --dir " + pki);
  ASSERT_EQ(renewed.code, 0) << renewed.output;
  EXPECT_THAT(renewed.output, HasSubstr("5 certificates renewed"));
  EXPECT_EQ(*ReadFile(pki + "/ca.pem"), ca);
  EXPECT_NE(*ReadFile(pki + "/learner-7.key"), key);
  struct stat info {};
  ASSERT_EQ(stat((pki + "/learner-7.key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u) << "for who could read it before";
  for (const char* name : {"coordinator", "learner", "rollout-worker", "reward-server", "learner-7"})
    EXPECT_GT(*ExpiryOfFile(pki + "/" + name + ".pem"), absl::Now() + absl::Hours(24 * 29)) << name;
  const auto coordinator = NamesOfFile(pki + "/coordinator.pem"), learner = NamesOfFile(pki + "/learner-7.pem");
  ASSERT_TRUE(coordinator.ok() && learner.ok());
  EXPECT_THAT(coordinator->hosts, testing::ElementsAre("node-1.example", "10.0.0.1", "fd00::1"));
  EXPECT_EQ(learner->identity.instance, "learner-7");
  EXPECT_EQ(learner->identity.role, "learner");
  EXPECT_THAT(learner->hosts, testing::ElementsAre("node-7"));

  const CommandResult none = Ctl("pki renew --kubernetes --dir " + dir.File("none"));
  EXPECT_NE(none.code, 0);
  EXPECT_THAT(none.output, HasSubstr("expected a CA in " + dir.File("none")));
  EXPECT_FALSE(std::filesystem::exists(dir.File("none"))) << "no CA is made";
  EXPECT_THAT(Ctl("pki renew --domain other --dir " + pki).output, HasSubstr("give --domain rlhf"));
}

TEST(Pki, OfSeveralCasTheFirstSigns) {
  ScratchDir dir;
  const std::string before = dir.File("before"), after = dir.File("after");
  for (const std::string& pki : {before, after}) ASSERT_EQ(Ctl("pki init --dir " + pki).code, 0);
  const std::string bundle = *ReadFile(before + "/ca.pem") + *ReadFile(after + "/ca.pem");
  ASSERT_TRUE(WriteFileDurably(before + "/ca.pem", bundle).ok());
  ASSERT_TRUE(WriteFileDurably(after + "/ca.pem", bundle).ok());
  EXPECT_EQ(Ctl("pki renew --dir " + before).code, 0);
  EXPECT_THAT(Ctl("pki renew --dir " + after).output, HasSubstr("the one that signs comes first"));
  EXPECT_THAT(Ctl("pki renew --kubernetes --dir " + before).output, HasSubstr(absl::Base64Escape(bundle)));
}

TEST(Pki, KubernetesSecretsOfEveryRole) {
  ScratchDir dir;
  const CommandResult printed = Ctl("pki init --kubernetes --namespace ml --dir " + dir.File("pki"));
  ASSERT_EQ(printed.code, 0) << printed.output;
  for (const char* part :
       {"name: rlhf-coordinator-tls", "name: rlhf-learner-tls", "name: rlhf-rollout-worker-tls",
        "name: rlhf-reward-server-tls", "name: rlhf-client-ca", "namespace: ml", "ca.crt: ", "tls.key: "})
    EXPECT_THAT(printed.output, HasSubstr(part));
  // The CA's key stays here.
  EXPECT_EQ(printed.output.find("ca.key"), std::string::npos);
}

v1::BackupChunk FileOf(const std::string& path) {
  v1::BackupChunk chunk;
  chunk.mutable_file()->set_path(path);
  return chunk;
}
v1::BackupChunk DataOf(const std::string& data) {
  v1::BackupChunk chunk;
  chunk.set_data(data);
  return chunk;
}
v1::BackupChunk ManifestOf(const std::string& path, const std::string& content) {
  v1::BackupChunk chunk;
  v1::FileEntry& file = *chunk.mutable_manifest()->add_files();
  file.set_path(path);
  file.set_size(content.size());
  file.set_sha256(artifact::Sha256Hex(content));
  return chunk;
}

TEST(BackupFiles, AreThoseOfTheManifestAndNoOthers) {
  ScratchDir dir;
  const std::string folder = dir.File("backup"), data = dir.File("data");
  // What an interrupted one left is not taken over.
  for (const std::string& partial : {folder, data}) {
    ASSERT_TRUE(MakeDirs(partial + ".partial").ok());
    ASSERT_TRUE(WriteFileDurably(partial + ".partial/left", "over").ok());
  }
  {
    auto writer = BackupWriter::Begin(folder);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const char* path : {"../outside", "/outside", "a/../../outside", ""})
      EXPECT_TRUE(absl::IsDataLoss((*writer)->Take(FileOf(path)))) << path;
    for (const v1::BackupChunk& chunk : {FileOf("deep/a"), DataOf("on"), DataOf("e")})
      ASSERT_TRUE((*writer)->Take(chunk).ok());
    EXPECT_TRUE(absl::IsDataLoss((*writer)->Finish().status())) << "without its manifest";
    ASSERT_TRUE((*writer)->Take(ManifestOf("deep/a", "other")).ok());
    EXPECT_TRUE(absl::IsDataLoss((*writer)->Finish().status())) << "another file than was made";
    EXPECT_FALSE(std::filesystem::exists(folder));
    ASSERT_TRUE((*writer)->Take(ManifestOf("deep/a", "one")).ok());
    ASSERT_TRUE((*writer)->Finish().ok());
  }
  EXPECT_FALSE(std::filesystem::exists(folder + "/left"));
  EXPECT_TRUE(absl::IsAlreadyExists(BackupWriter::Begin(folder).status()));
  // One of an earlier release, which everybody may read.
  ASSERT_EQ(chmod((folder + "/deep/a").c_str(), 0644), 0);
  ASSERT_TRUE(RestoreBackup(folder, data).ok());
  EXPECT_EQ(*ReadFile(data + "/deep/a"), "one");
  struct stat info {};
  ASSERT_EQ(stat((data + "/deep/a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_TRUE(std::filesystem::exists(data + "/RESTORED")) << "the coordinator asks its fleet what it has";
  EXPECT_FALSE(std::filesystem::exists(data + "/left"));
  EXPECT_TRUE(absl::IsFailedPrecondition(RestoreBackup(folder, data))) << "a data folder in use";
  ASSERT_TRUE(MakeDirs(dir.File("empty")).ok());
  EXPECT_TRUE(RestoreBackup(folder, dir.File("empty")).ok());
  for (const char* damaged : {"ond", "longer"}) {
    ASSERT_TRUE(WriteFileDurably(folder + "/deep/a", damaged).ok());
    EXPECT_TRUE(absl::IsDataLoss(RestoreBackup(folder, dir.File("new")))) << damaged;
    EXPECT_FALSE(std::filesystem::exists(dir.File("new")));
  }
}

TEST(Tokens, TheListSaysWhenOneEnds) {
  const absl::Time at = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_EQ(Expiry(at, at - absl::Seconds(1)), "2023-11-14 22:13 UTC");
  EXPECT_EQ(Expiry(at, at), "expired 2023-11-14 22:13 UTC");
}

TEST(BootstrapToken, IsPrintedOnceOrAsASecret) {
  EXPECT_THAT(Ctl("token create --bootstrap").output, testing::MatchesRegex("rlhf_[0-9a-f]+_[0-9a-f]+\n"));
  EXPECT_THAT(Ctl("token create --bootstrap --kubernetes").output, HasSubstr("name: rlhf-bootstrap-token"));
  const auto first = NewToken(), second = NewToken();
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(*first, *second);
  EXPECT_EQ(first->size(), 5u + 12 + 1 + 64);
}

TEST(SubmitKubernetes, PrintsAJobWithItsOwnFleet) {
  ScratchDir dir;
  ASSERT_TRUE(WriteFileDurably(dir.File("job.yaml"),
                               "name: mine\nlearners: {ranks: 3}\nsft: {model: m, data: d, steps: 1, batch_size: 1}\n")
                  .ok());
  const std::string submit = "submit --kubernetes --registry r.example/x --tag 7 ";
  const CommandResult printed = Ctl(submit + dir.File("job.yaml"));
  ASSERT_EQ(printed.code, 0) << printed.output;
  const size_t at = printed.output.find("  name: rlhf-mine-");
  ASSERT_NE(at, std::string::npos) << printed.output;
  const std::string name = printed.output.substr(at + 8, sizeof("rlhf-mine-01234567") - 1);
  EXPECT_THAT(name, testing::MatchesRegex("rlhf-mine-[0-9a-f]{8}"));
  for (const std::string& part :
       {std::string("kind: JobSet"), "  name: " + name + "\n  namespace: rlhf",
        std::string("image: r.example/x/learner:7"), std::string("parallelism: 3"),
        "configMap: {name: " + name + "-learner}", "name: " + name + "-job",
        "value: rlhf-learner-" + name.substr(5) + "-$(POD_INDEX)", std::string("batch_size: 1")})
    EXPECT_THAT(printed.output, HasSubstr(part));
  EXPECT_EQ(Ctl(submit + dir.File("job.yaml")).output, printed.output) << "what is applied twice is one job";
  EXPECT_THAT(Ctl(submit + "--request-id again " + dir.File("job.yaml")).output, Not(HasSubstr(name)));
  const CommandResult workers = Ctl(submit + "--rollout-workers 7 " + dir.File("job.yaml"));
  EXPECT_THAT(workers.output, HasSubstr("parallelism: 7\n          completions: 7\n"));
  EXPECT_THAT(workers.output, HasSubstr("image: r.example/x/rollout-worker:7\n"));
  EXPECT_THAT(workers.output, HasSubstr("image: r.example/x/cli:"));
  EXPECT_THAT(workers.output, Not(HasSubstr("cli:7"))) << "its version is this program's";
  for (const char* left : {"own-fleet", "suspend: true", "image: rlhf-"})
    EXPECT_THAT(printed.output, Not(HasSubstr(left)));
  ASSERT_TRUE(
      WriteFileDurably(dir.File("job.yaml"), "name: mine\nsft: {model: \"file:m\", data: d, steps: 1, batch_size: 1}\n")
          .ok());
  EXPECT_EQ(Ctl("submit --kubernetes " + dir.File("job.yaml")).code, 2);
}

TEST(SubmitKubernetes, AJobsNameIsADnsLabelOfItsOwn) {
  const auto is_label = testing::MatchesRegex("[a-z0-9]([-a-z0-9]*[a-z0-9])?");
  for (const std::string& job :
       {std::string("mine"), std::string(63, 'a'), std::string("--Mine_2.0--"), std::string()}) {
    const std::string name = FleetName(job, "steps: 1", "");
    EXPECT_THAT(name, is_label) << job;
    EXPECT_LE(("rlhf-" + name + "-rollout-0-1234").size(), 63u);
    EXPECT_NE(name, FleetName(job, "steps: 2", ""));
    EXPECT_NE(name, FleetName(job, "steps: 1", "again"));
    EXPECT_EQ(name, FleetName(job, "steps: 1", ""));
  }
  EXPECT_NE(FleetName(std::string(63, 'a'), "a", ""), FleetName(std::string(62, 'a') + "b", "b", ""));
  EXPECT_NE(FleetName("a", "bc", "a"), FleetName("a", "c", "ab"));
  const std::string lines = OwnFleetManifest("a", "text: |\n  one\n\n  two\n", OwnFleet());
  EXPECT_THAT(lines, HasSubstr("\n    text: |\n      one\n\n      two\n---\n"));
}

TEST(Plan, CountsWhatTrainingHolds) {
  PlanInput input;
  input.policy = *artifact::ParseModelConfig(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})",
      "test");
  input.slots = 3;
  const uint64_t parameters = static_cast<uint64_t>(artifact::NumParameters(input.policy));
  const auto line = [&](const std::string& what) {
    for (const PlanLine& l : MemoryPlan(input))
      if (l.what == what) return l.bytes;
    ADD_FAILURE() << "no line " << what;
    return uint64_t{0};
  };
  EXPECT_EQ(line("AdamW's two moments, float32"), 2 * 2 * parameters * 4);
  EXPECT_EQ(line("key-value cache"), 2u * 1 * 2 * 8 * 4 * 3 * 64);
  // A token of a layer: 4 · hidden + q, k, v and attention's output + 3 · inner, 224 values; its input alone is 16.
  input.policy.num_layers = 5;
  EXPECT_EQ(line("activations of a micro-batch"), 8192u * 5 * 224 * 4);
  input.gradient_checkpointing = true;
  EXPECT_EQ(line("activations of a micro-batch"), 8192u * (5 * 16 + 224) * 4);
  input.policy.num_layers = 1;
  const uint64_t with_critic = TotalOf(MemoryPlan(input), "learner");
  input.critic = false;
  EXPECT_LT(TotalOf(MemoryPlan(input), "learner"), with_critic);
  const uint64_t publishing = TotalOf(MemoryPlan(input), "learner");
  input.publishes = false;
  EXPECT_EQ(TotalOf(MemoryPlan(input), "learner"), publishing - 2 * 4 * parameters);
  input.bfloat16 = true;
  EXPECT_EQ(line("key-value cache"), 2u * 1 * 2 * 8 * 2 * 3 * 64);
  input.tokens_a_slot = 10;
  EXPECT_EQ(line("key-value cache"), 2u * 1 * 2 * 8 * 2 * 3 * 10);
  input.gradient_checkpointing = input.bfloat16 = false;
  input.policy.gated_mlp = false;
  EXPECT_EQ(line("activations of a micro-batch"), 8192u * (224 - 32) * 4) << "two inner values, not three";
  // Of few tokens a step's own memory is less than the layers, which are whole between steps.
  input.policy = *artifact::ParseModelConfig(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":64,"intermediate_size":64,"num_hidden_layers":400,)"
      R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})",
      "test");
  input.ranks = 4;
  input.micro_batch_tokens = 1;
  input.shard_optimizer_state = input.shard_parameters = true;
  EXPECT_GT(line("the layers whole, between steps, beyond a step's"), 0u);
}

TEST(Plan, IsOfWhatTheJobSays) {
  constexpr char kConfig[] =
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":3,)"
      R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})";
  ScratchDir dir;
  ASSERT_TRUE(MakeDirs(dir.File("m")).ok());
  ASSERT_TRUE(WriteFileDurably(dir.File("m/config.json"), kConfig).ok());
  const auto learner = [&](const std::function<void(v1::JobSpec*)>& fill) {
    v1::JobSpec spec;
    fill(&spec);
    const std::vector<MemoryEstimate> estimates = EstimateMemory(spec, dir.path());
    return estimates.size() == 1 ? estimates[0].learner : 0;
  };
  const auto planned = [&](const std::function<void(PlanInput*)>& fill) {
    PlanInput input;
    input.policy = *artifact::ParseModelConfig(kConfig, "test");
    fill(&input);
    return TotalOf(MemoryPlan(input), "learner");
  };
  const auto ppo = [](v1::JobSpec* spec) {
    spec->mutable_ppo()->set_policy("file:m");
    return spec->mutable_ppo();
  };
  EXPECT_EQ(learner([&](auto* spec) { ppo(spec); }), planned([](PlanInput*) {})) << "GAE, with a critic";
  EXPECT_EQ(learner([&](auto* spec) { ppo(spec)->set_advantage(v1::RLOO); }),
            planned([](auto* input) { input->critic = false; }));
  EXPECT_EQ(learner([&](auto* spec) { ppo(spec)->set_precision(v1::BFLOAT16); }),
            planned([](auto* input) { input->bfloat16 = true; }));
  EXPECT_EQ(learner([&](auto* spec) { ppo(spec)->set_micro_batch_tokens(100); }),
            planned([](auto* input) { input->micro_batch_tokens = 100; }));
  EXPECT_EQ(learner([&](auto* spec) { ppo(spec)->set_gradient_checkpointing(true); }),
            planned([](auto* input) { input->gradient_checkpointing = true; }));
  EXPECT_EQ(learner([&](auto* spec) { spec->mutable_sft()->set_model("file:m"); }),
            planned([](auto* input) { input->critic = input->publishes = false; }));
  EXPECT_EQ(learner([&](auto* spec) {
              spec->mutable_reward_model()->set_model("file:m");
              spec->mutable_reward_model()->set_gradient_checkpointing(true);
            }),
            planned([](auto* input) {
              input->critic = input->publishes = false;
              input->gradient_checkpointing = true;
            }));
}

TEST(Plan, DividesTheOptimizersStateAmongTheRanks) {
  PlanInput input;
  input.policy = *artifact::ParseModelConfig(
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})",
      "test");
  const uint64_t trained = 2 * static_cast<uint64_t>(artifact::NumParameters(input.policy));
  const uint64_t on_their_way = (64 * 16 + 2 * 16 * 32) * 4;
  for (const bool bfloat16 : {false, true}) {
    input.bfloat16 = bfloat16;
    input.ranks = 4;
    input.shard_optimizer_state = false;
    const uint64_t whole = TotalOf(MemoryPlan(input), "learner");
    input.shard_optimizer_state = true;
    // Sums of gradients, moments and snapshot, 24 bytes a parameter, and with bfloat16 the masters, 4: a quarter of
    // them is left, of which the snapshot is the host's.
    const uint64_t divided = trained * (bfloat16 ? 28 : 24);
    ASSERT_EQ(trained % 4, 0);
    EXPECT_EQ(TotalOf(MemoryPlan(input), "learner"), whole - divided * 3 / 4 + on_their_way) << bfloat16;
    EXPECT_EQ(TotalOf(MemoryPlan(input), "learner") - LearnerOnGpu(MemoryPlan(input)),
              trained * 12 / 4 + trained / 2 * (bfloat16 ? 6 : 8));
    // Of the layer's weights (4 · 16 · 16 + 3 · 16 · 32) a quarter, in float32; with bfloat16 the masters are enough.
    // One layer is there while it is computed, and of a matrix a second copy while it comes.
    const uint64_t shares = TotalOf(MemoryPlan(input), "learner"), layers = 2 * 2560, matrix = 16 * 32;
    input.shard_parameters = true;
    EXPECT_EQ(TotalOf(MemoryPlan(input), "learner"),
              bfloat16 ? shares - layers * 2 + (2560 + matrix) * 2 : shares - layers * 3 + (2560 + matrix) * 4);
    input.shard_parameters = false;
    input.ranks = 1;
    EXPECT_EQ(TotalOf(MemoryPlan(input), "learner"), whole) << "a rank alone holds all of it";
  }
  // What `validate` says follows the job: of a stage its own learners, else the pipeline's.
  ScratchDir dir;
  ASSERT_TRUE(MakeDirs(dir.File("m")).ok());
  ASSERT_TRUE(
      WriteFileDurably(
          dir.File("m/config.json"),
          R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,)"
          R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":64,"rms_norm_eps":1e-5,"rope_theta":10000.0})")
          .ok());
  v1::JobSpec spec;
  spec.mutable_learners()->set_ranks(8);
  spec.mutable_learners()->set_shard_optimizer_state(true);
  for (int i = 0; i < 3; ++i) spec.mutable_pipeline()->add_stages()->mutable_sft()->set_model("file:m");
  spec.mutable_pipeline()->mutable_stages(1)->mutable_learners()->set_ranks(8);
  v1::LearnerGroupSpec* elastic = spec.mutable_pipeline()->mutable_stages(2)->mutable_learners();
  *elastic = spec.learners();
  elastic->set_min_ranks(2);
  const std::vector<MemoryEstimate> estimates = EstimateMemory(spec, dir.path());
  ASSERT_EQ(estimates.size(), 3);
  EXPECT_LT(estimates[0].learner, estimates[2].learner) << "it may shrink to two ranks";
  EXPECT_LT(estimates[2].learner, estimates[1].learner);
}

TEST(Up, RefusesRanksThatShareAGpu) {
  const CommandResult refused = Ctl("up --device cuda:0 --learners 2");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.output, HasSubstr("expected at most 1 with --device cuda:0, found 2"));
}

TEST(Doctor, SaysWhatItFoundAndWhatToDo) {
  ScratchDir dir;
  const CommandResult result = Ctl("--context " + dir.File("none.json") + " doctor --dir " + dir.path());
  EXPECT_EQ(result.code, 0) << result.output;
  for (const char* part : {"disk", "shared memory", "GPUs", "coordinator", "rlhfctl up starts one"})
    EXPECT_THAT(result.output, HasSubstr(part));
  EXPECT_EQ(Ctl("--address 127.0.0.1:1 --insecure doctor").code, 1) << "nobody is there";
}

}  // namespace
}  // namespace rlhf::cli
