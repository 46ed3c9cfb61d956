// Digests, safetensors, model configurations, the artifact root.
#include <filesystem>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "artifact/artifact_root.h"
#include "artifact/digest.h"
#include "artifact/model_config.h"
#include "artifact/safetensors.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::artifact {
namespace {

using testing::HasSubstr;

TEST(DigestTest, KnownValues) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 streaming;
  streaming.Update("a");
  streaming.Update("bc");
  EXPECT_EQ(streaming.FinishHex(), Sha256Hex("abc"));
  EXPECT_EQ(Xxh3Hex("", 0), "99aa06d3014798d86001c324468d497f");  // XXH3-128 of nothing, by xxhsum
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string WriteRaw(const std::string& header, const std::string& data) {
    std::string bytes(8, '\0');
    for (int i = 0; i < 8; ++i)
      bytes[static_cast<size_t>(i)] = static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
    EXPECT_TRUE(WriteFileDurably(file_, bytes + header + data).ok());
    return file_;
  }
  void ExpectRefused(const std::string& header, const std::string& data, const std::string& says) {
    const auto opened = SafetensorsFile::Open(WriteRaw(header, data));
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument) << header;
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr(says)) << header;
  }
  ScratchDir dir_;
  std::string file_ = dir_.File("x.safetensors");
};

TEST_F(SafetensorsTest, WhatIsWrittenIsRead) {
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  TensorToWrite tensor{"w", DType::kF32, {2, 3}, {reinterpret_cast<const uint8_t*>(values.data()), 24}};
  ASSERT_TRUE(WriteSafetensors(file_, {tensor}).ok());
  const auto file = SafetensorsFile::Open(file_);
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorInfo& info = (*file)->tensors().at("w");
  EXPECT_EQ(info.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(reinterpret_cast<const float*>((*file)->Data(info).data())[5], 6);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
}

TEST_F(SafetensorsTest, DamageIsNamed) {
  ExpectRefused("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", "abcd",
                "w");  // size and shape differ
  ExpectRefused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "abcdefgh",
                "");  // bytes that nobody owns
  ExpectRefused("{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "abcd", "");  // cut off
  ExpectRefused("{\"w\":{\"dtype\":\"Q9\",\"shape\":[1],\"data_offsets\":[0,4]}}", "abcd", "Q9");
  ExpectRefused("{\"w\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,4]}}", "abcd",
                "w");  // overflow
  ExpectRefused(
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_"
      "offsets\":[2,6]}}",
      "abcdef", "");
  ExpectRefused("{not json", "", "x.safetensors");
  ASSERT_TRUE(WriteFileDurably(file_, std::string(8, '\xff')).ok());
  EXPECT_EQ(SafetensorsFile::Open(file_).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(WriteFileDurably(file_, "abc").ok());
  EXPECT_EQ(SafetensorsFile::Open(file_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ModelConfigTest, BothFamiliesAreReadAndWrittenBack) {
  for (const char* name : {"llama", "llama_grouped_untied", "gpt2"}) {
    const auto config = ParseModelConfig(Golden("model.json")["models"][name]["config"].dump(), name);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->hidden_size, 16);
    EXPECT_EQ(config->num_kv_heads, std::string(name) == "llama_grouped_untied" ? 2 : 4);
    const auto again = ParseModelConfig(ModelConfigToJson(*config), name);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(ModelConfigToJson(*again), ModelConfigToJson(*config));
  }
}

TEST(ModelConfigTest, WhatWouldChangeTheNumbersIsRefusedByName) {
  const auto refused = [](const std::string& key, const nlohmann::json& value, const std::string& says) {
    nlohmann::json config = Golden("model.json")["models"]["llama"]["config"];
    config[key] = value;
    const auto parsed = ParseModelConfig(config.dump(), "config.json");
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << key;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(says)) << key;
  };
  refused("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}, "rope");
  refused("hidden_size", "sixteen", "hidden_size");
  refused("num_attention_heads", 5, "heads");
  refused("model_type", "mamba", "mamba");
  refused("vocab_size", -4, "vocab_size");
  EXPECT_EQ(ParseModelConfig("[]", "config.json").status().code(), absl::StatusCode::kInvalidArgument);
}

class ArtifactRootTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(MakeDirs(dir_.File("model/sub")).ok());
    ASSERT_TRUE(WriteFileDurably(dir_.File("model/a.txt"), "alpha").ok());
    ASSERT_TRUE(WriteFileDurably(dir_.File("model/sub/b.txt"), "beta").ok());
  }
  ScratchDir dir_;
  ArtifactRoot root_{dir_.File("root")};
};

TEST_F(ArtifactRootTest, ContentIsTheName) {
  const auto first = root_.Publish(dir_.File("model")), again = root_.Publish(dir_.File("model"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->digest, again->digest);
  EXPECT_EQ(first->digest.rfind("sha256:", 0), 0u);
  EXPECT_EQ(first->files.size(), 2u);
  EXPECT_EQ(first->total_size, 9u);
  const auto path = root_.Path(first->digest);
  ASSERT_TRUE(path.ok());
  EXPECT_EQ(*ReadFile(*path + "/sub/b.txt"), "beta");
  EXPECT_TRUE(root_.Verify(first->digest).ok());
  ASSERT_TRUE(WriteFileDurably(dir_.File("model/a.txt"), "other").ok());
  EXPECT_NE(root_.Publish(dir_.File("model"))->digest, first->digest);
  EXPECT_EQ(*ReadFile(*path + "/a.txt"), "alpha");
}

TEST_F(ArtifactRootTest, AFlippedByteIsFound) {
  const auto manifest = root_.Publish(dir_.File("model"));
  ASSERT_TRUE(manifest.ok());
  const std::string file = *root_.Path(manifest->digest) + "/a.txt";
  std::filesystem::remove(file);  // a published file may be a hard link of its source
  ASSERT_TRUE(WriteFileDurably(file, "alphA").ok());
  const absl::Status verified = root_.Verify(manifest->digest);
  EXPECT_EQ(verified.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(verified.message()), HasSubstr("a.txt"));
}

TEST_F(ArtifactRootTest, UnknownOrMalformedDigestsAreRefused) {
  EXPECT_EQ(root_.Path(absl::StrCat("sha256:", std::string(64, '0'))).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(root_.Path("sha256:../../etc").ok());
  EXPECT_FALSE(root_.Has("nonsense"));
}

TEST_F(ArtifactRootTest, PublishersDoNotDisturbOneAnother) {
  std::vector<std::thread> threads;
  std::vector<std::string> digests(6);
  for (size_t i = 0; i < digests.size(); ++i) {
    threads.emplace_back([&, i] {
      const auto manifest = ArtifactRoot(dir_.File("root")).Publish(dir_.File("model"));
      if (manifest.ok()) digests[i] = manifest->digest;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& digest : digests) EXPECT_EQ(digest, digests[0]);
  EXPECT_TRUE(root_.Verify(digests[0]).ok());
  EXPECT_TRUE(root_.Delete(digests[0]).ok());
  EXPECT_FALSE(root_.Has(digests[0]));
}

}  // namespace
}  // namespace rlhf::artifact
