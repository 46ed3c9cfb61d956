// Digests, safetensors, model configurations, the artifact root.
#include <sys/stat.h>
#include <algorithm>

#include <cstring>
#include <filesystem>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "artifact/artifact_root.h"
#include "artifact/digest.h"
#include "artifact/model_config.h"
#include "artifact/safetensors.h"
#include "artifact/safetensors_writer.h"
#include "common/durable_file.h"
#include "tests/testing/golden.h"
#include "tests/testing/linked_folder.h"
#include "tests/testing/scratch_dir.h"
#include "tests/testing/tensor_bytes.h"

namespace rlhf::artifact {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(DigestTest, KnownValues) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 streaming;
  streaming.Update("a");
  streaming.Update("bc");
  EXPECT_EQ(streaming.FinishHex(), Sha256Hex("abc"));
  EXPECT_EQ(Xxh3Hex("", 0), "99aa06d3014798d86001c324468d497f");  // XXH3-128 of nothing, by xxhsum
}

TEST(DigestTest, Xxh3InPiecesIsThatOfTheWhole) {
  std::string bytes(100'000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i >> 7);
  Xxh3 digest;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{240}, size_t{241}, size_t{65'536}, bytes.size()}) {
    digest.Reset();
    for (size_t at = 0, piece = 1; at < size; at += piece, piece = piece * 3 % 7001)
      digest.Update(bytes.data() + at, std::min(piece, size - at));
    EXPECT_EQ(digest.Hex(), Xxh3Hex(bytes.data(), size)) << size;
  }
}

std::vector<float> Floats(const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
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
  EXPECT_EQ(Floats(TensorBytes(**file, info)), values);
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  std::vector<uint8_t> last(8);
  ASSERT_TRUE((*file)->Read(info, 16, absl::MakeSpan(last)).ok());
  EXPECT_EQ(Floats(last), (std::vector<float>{5, 6}));
}

TEST_F(SafetensorsTest, AFileThatChangesUnderItsReader) {
  const std::vector<float> values{1, 2}, others{3, 4};
  const auto write = [&](const std::vector<float>& content) {
    return WriteSafetensors(file_, {{"w", DType::kF32, {2}, {reinterpret_cast<const uint8_t*>(content.data()), 8}}});
  };
  ASSERT_TRUE(write(values).ok());
  const auto file = SafetensorsFile::Open(file_);
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorInfo& info = (*file)->tensors().at("w");
  ASSERT_TRUE(write(others).ok());
  EXPECT_EQ(Floats(TensorBytes(**file, info)), values) << "it was replaced: what was opened is read";

  const auto other = SafetensorsFile::Open(file_);
  ASSERT_TRUE(other.ok()) << other.status();
  std::filesystem::resize_file(file_, std::filesystem::file_size(file_) - 4);
  std::vector<uint8_t> bytes(8);
  const absl::Status cut = (*other)->Read((*other)->tensors().at("w"), 0, absl::MakeSpan(bytes));
  EXPECT_EQ(cut.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(cut.message()), AllOf(HasSubstr(file_), HasSubstr("cut short"), HasSubstr("restore")));
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

TEST_F(SafetensorsTest, HostileHeadersCostLittle) {
  ExpectRefused(
      "{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"w\":{\"dtype\":\"U8\",\"shape\":[1],"
      "\"data_offsets\":[1,2]}}",
      "ab", "twice");
  ExpectRefused("{\"__metadata__\":{\"a\":{}}}", "", "string");
  ExpectRefused("{\"__metadata__\":{},\"__metadata__\":{}}", "", "twice");
  ExpectRefused("{\"w\":[]}", "", "an object with dtype");
  ExpectRefused("{\"w\":{\"dtype\":[],\"shape\":[],\"data_offsets\":[0,1]}}", "a", "dtype");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", "a", "shape");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", "a", "shape");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", "a",
                "at most 16");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", "a", "data_offsets");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", "a", "data_offsets");
  ExpectRefused("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":{}},\"v\":{}}", "a", "not known");
  // So deep that a tree of it could not be written out.
  ExpectRefused(absl::StrCat("{\"w\":{\"dtype\":", std::string(1'000'000, '['), "}}"), "", "dtype");
  ExpectRefused(absl::StrCat("{\"w\":{\"x\":", std::string(1'000'000, '['), "}}"), "", "not known");
  ExpectRefused("[]", "", "not a JSON object");
}

// A parser that looks through all tensors again after each takes minutes for these.
TEST_F(SafetensorsTest, TheTimeOfAHeaderGrowsWithItsLength) {
  constexpr int kTensors = 300'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i,
                    "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"note\":\"passed over\"}");
  }
  const absl::Time started = absl::Now();
  const auto opened = SafetensorsFile::Open(WriteRaw(header + "}", ""));
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), static_cast<size_t>(kTensors));
  EXPECT_LT(absl::Now() - started, absl::Seconds(30));
}

// A tensor at a time, as models are saved that are larger than memory.
TEST_F(SafetensorsTest, AFileIsThereOnceEveryTensorOfItIsWritten) {
  const std::vector<TensorLayout> layout = {{"a", DType::kF32, {2}}, {"b", DType::kU8, {3}}};
  const std::vector<uint8_t> a(8, 1), b(3, 2);
  {
    const auto writer = SafetensorsWriter::Create(file_, layout);
    ASSERT_TRUE(writer.ok()) << writer.status();
    ASSERT_TRUE((*writer)->Write("b", b).ok());
    EXPECT_EQ((*writer)->Write("b", b).code(), absl::StatusCode::kInvalidArgument) << "twice";
    EXPECT_EQ((*writer)->Write("c", b).code(), absl::StatusCode::kInvalidArgument) << "of another model";
    EXPECT_EQ((*writer)->Write("a", b).code(), absl::StatusCode::kInvalidArgument) << "too short";
    const absl::Status early = (*writer)->Finish();
    EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition) << early;
    EXPECT_THAT(std::string(early.message()), HasSubstr("\"a\" was not written"));
    EXPECT_FALSE(std::filesystem::exists(file_));
    ASSERT_TRUE((*writer)->Write("a", a).ok());
    ASSERT_TRUE((*writer)->Finish().ok());
  }
  const auto file = SafetensorsFile::Open(file_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(TensorBytes(**file, (*file)->tensors().at("a")), a);
  EXPECT_EQ(TensorBytes(**file, (*file)->tensors().at("b")), b);
  // One that is given up leaves the former file, and nothing beside it.
  {
    const auto writer = SafetensorsWriter::Create(file_, {{"other", DType::kU8, {1}}});
    ASSERT_TRUE(writer.ok()) << writer.status();
  }
  EXPECT_TRUE(SafetensorsFile::Open(file_).ok());
  EXPECT_FALSE(std::filesystem::exists(file_ + ".partial"));
}

class ShardsTest : public testing::Test {
 protected:
  void SetUp() override {
    Shard("model-00001-of-00002.safetensors", {"a", "b"});
    Shard("model-00002-of-00002.safetensors", {"c"});
    map_ = {{"a", "model-00001-of-00002.safetensors"},
            {"b", "model-00001-of-00002.safetensors"},
            {"c", "model-00002-of-00002.safetensors"}};
  }
  void Shard(const std::string& file, const std::vector<std::string>& names) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& name : names)
      tensors.push_back({name, DType::kF32, {1}, {reinterpret_cast<const uint8_t*>(&value_), sizeof(value_)}});
    ASSERT_TRUE(WriteSafetensors(dir_.File(file), tensors).ok());
  }
  absl::StatusOr<ModelWeights> Open() {
    EXPECT_TRUE(WriteFileDurably(dir_.File("model.safetensors.index.json"),
                                 nlohmann::json{{"metadata", {{"total_size", 12}}}, {"weight_map", map_}}.dump())
                    .ok());
    return OpenModelWeights(dir_.path());
  }
  void ExpectRefused(absl::StatusCode code, const std::vector<std::string>& says) {
    const auto opened = Open();
    EXPECT_EQ(opened.status().code(), code) << opened.status();
    for (const std::string& part : says) EXPECT_THAT(std::string(opened.status().message()), HasSubstr(part));
  }
  ScratchDir dir_;
  nlohmann::json map_;
  float value_ = 7;
};

TEST_F(ShardsTest, AllOfThemAreOneModel) {
  const auto weights = Open();
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->tensors.size(), 3u);
  const ModelWeights::Entry& entry = weights->tensors.at("c");
  EXPECT_EQ(Floats(TensorBytes(*entry.file, *entry.info))[0], value_);
}

TEST_F(ShardsTest, AnIndexThatDoesNotFitItsShardsIsRefused) {
  map_["d"] = "model-00002-of-00002.safetensors";
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"\"d\"", "model-00002-of-00002"});
  map_.erase("d");
  map_["a"] = "model-00002-of-00002.safetensors";  // it is in the other
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"\"a\"", "model-00002-of-00002"});
  for (const char* bad : {"../model-00001-of-00002.safetensors", "/etc/passwd", "sub/x.safetensors"}) {
    map_["a"] = bad;
    ExpectRefused(absl::StatusCode::kInvalidArgument, {"weight_map.a", "beside the index"});
  }
  map_["a"] = 7;
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"weight_map.a"});
  map_ = 7;
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"weight_map"});
}

TEST_F(ShardsTest, ShardsThatAreMissingDamagedOrTwiceAreNamed) {
  map_["d"] = "model-00003-of-00003.safetensors";
  ExpectRefused(absl::StatusCode::kNotFound, {"model-00003-of-00003.safetensors"});
  map_.erase("d");
  Shard("model-00002-of-00002.safetensors", {"a", "c"});
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"\"a\"", "two shards"});
  ASSERT_TRUE(WriteFileDurably(dir_.File("model-00002-of-00002.safetensors"), "damaged").ok());
  ExpectRefused(absl::StatusCode::kInvalidArgument, {"model-00002-of-00002.safetensors"});
  ASSERT_TRUE(WriteFileDurably(dir_.File("model.safetensors.index.json"), "{").ok());
  EXPECT_EQ(OpenModelWeights(dir_.path()).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(dir_.File("model.safetensors.index.json"));
  EXPECT_EQ(OpenModelWeights(dir_.path()).status().code(), absl::StatusCode::kNotFound);
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

TEST_F(ArtifactRootTest, AUsersFolderMayHoldLinksAndHiddenFiles) {
  const std::string linked = MakeLinkedFolder(dir_.File("model"), dir_.File("cache"));
  const auto plain = ComputeManifest(dir_.File("model")), users = ComputeManifest(linked, Origin::kUser);
  ASSERT_TRUE(users.ok()) << users.status();
  EXPECT_EQ(users->digest, plain->digest);
  EXPECT_EQ(users->total_size, plain->total_size);
  std::filesystem::create_directory_symlink(linked, dir_.File("link"));
  EXPECT_EQ(ComputeManifest(dir_.File("link"), Origin::kUser)->digest, plain->digest);
  const std::string file = dir_.File("model/a.txt");
  EXPECT_EQ(ComputeManifest(linked + "/a.txt", Origin::kUser)->digest, ComputeManifest(file)->digest);
  // What a role reads has none of it.
  for (const std::string& path : {linked, dir_.File("link"), linked + "/a.txt"})
    EXPECT_EQ(ComputeManifest(path).status().code(), absl::StatusCode::kInvalidArgument) << path;
  EXPECT_FALSE(root_.Publish(linked).ok());
}

TEST_F(ArtifactRootTest, LinksToOtherThanFilesAreNamed) {
  const auto refused = [&](const std::string& target, const std::string& says) {
    const std::string link = dir_.File("model/sub/link");
    std::filesystem::create_symlink(target, link);
    const absl::Status status = ComputeManifest(dir_.File("model"), Origin::kUser).status();
    std::filesystem::remove(link);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << target;
    EXPECT_THAT(std::string(status.message()), HasSubstr(link + ": expected a file, or a link to one")) << target;
    EXPECT_THAT(std::string(status.message()), HasSubstr(target + ", " + says)) << target;
  };
  refused("../../blobs/none", "where there is nothing: was a download interrupted?");
  refused("link", "where there is nothing");  // itself
  refused(dir_.File("model"), "a folder; copy the folder");
  refused("/dev/null", "which is no regular file");
}

TEST_F(ArtifactRootTest, OthersOfItsGroupPublishBesideIt) {
  const mode_t before = umask(0007);
  const auto published = root_.Publish(dir_.File("model"));
  umask(before);
  ASSERT_TRUE(published.ok()) << published.status();
  for (const char* folder : {"root/.staging", "root/sha256"}) {
    struct stat info {};
    ASSERT_EQ(stat(dir_.File(folder).c_str(), &info), 0) << folder;
    EXPECT_EQ(info.st_mode & 0777, 0770u) << folder;
  }
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

// Who may write into the root could write a manifest that fits: the artifact's name does not.
TEST_F(ArtifactRootTest, AManifestThatFitsOtherBytesIsNotTheArtifacts) {
  const auto manifest = root_.Publish(dir_.File("model"));
  ASSERT_TRUE(manifest.ok());
  const std::string folder = *root_.Path(manifest->digest);
  std::filesystem::remove(folder + "/a.txt");
  ASSERT_TRUE(WriteFileDurably(folder + "/a.txt", "alphA").ok());
  std::string text = *ReadFile(folder + "/.manifest.json");
  const std::string before = Sha256Hex("alpha");
  const size_t at = text.find(before);
  ASSERT_NE(at, std::string::npos);
  std::filesystem::remove(folder + "/.manifest.json");
  ASSERT_TRUE(WriteFileDurably(folder + "/.manifest.json", text.replace(at, before.size(), Sha256Hex("alphA"))).ok());
  const absl::Status verified = root_.Verify(manifest->digest);
  EXPECT_EQ(verified.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(verified.message()), HasSubstr("is not the one it is named by"));
  // Published anew, it is whole again.
  ASSERT_TRUE(root_.Publish(dir_.File("model")).ok());
  EXPECT_TRUE(root_.Verify(manifest->digest).ok());
  EXPECT_EQ(*ReadFile(folder + "/a.txt"), "alpha");
}

TEST_F(ArtifactRootTest, OnlyFilesOfItsOwnAreInAnArtifact) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("secret"), "a key").ok());
  std::filesystem::create_symlink(dir_.File("secret"), dir_.File("model/sub/link"));
  const auto linked = root_.Publish(dir_.File("model"));
  EXPECT_EQ(linked.status().code(), absl::StatusCode::kInvalidArgument) << linked.status();
  EXPECT_THAT(std::string(linked.status().message()), HasSubstr("symbolic links"));
  std::filesystem::remove(dir_.File("model/sub/link"));
  std::filesystem::create_directory_symlink(dir_.path(), dir_.File("model/sub/folder"));
  EXPECT_EQ(root_.Publish(dir_.File("model")).status().code(), absl::StatusCode::kInvalidArgument);
  std::filesystem::remove(dir_.File("model/sub/folder"));
  ASSERT_EQ(mkfifo(dir_.File("model/pipe").c_str(), 0600), 0);
  EXPECT_THAT(std::string(root_.Publish(dir_.File("model")).status().message()), HasSubstr("only regular files"));
  std::filesystem::remove(dir_.File("model/pipe"));
  std::filesystem::create_symlink(dir_.File("model"), dir_.File("alias"));
  EXPECT_THAT(std::string(root_.Publish(dir_.File("alias")).status().message()), HasSubstr("found a symbolic link"));
  EXPECT_TRUE(root_.Publish(dir_.File("model")).ok());
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
