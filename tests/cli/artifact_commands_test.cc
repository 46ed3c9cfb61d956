// models, data and list against a service that only pretends.
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/artifact_root.h"
#include "artifact/digest.h"
#include "cli/uploads.h"
#include "common/durable_file.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/testing/linked_folder.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/run_command.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::cli {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string FakeDigest(const std::string& begin) {
  return absl::StrCat("sha256:", begin, std::string(64 - begin.size(), '0'));
}

class FakeArtifacts final : public v1::ArtifactService::Service {
 public:
  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListArtifactsRequest* request,
                             v1::ListArtifactsResponse* response) override {
    project = request->project();
    // One of them in two projects.
    for (const char* begin : {"aaaabbbb1", "aaaabbbb2", "ccccdddd", "ccccdddd"})
      response->add_artifacts()->set_digest(FakeDigest(begin));
    return grpc::Status::OK;
  }
  grpc::Status GetArtifact(grpc::ServerContext*, const v1::GetArtifactRequest* request,
                           v1::Artifact* artifact) override {
    asked = request->reference();
    artifact->set_digest(FakeDigest("ccccdddd"));
    for (const auto& [path, content] : files) {
      v1::FileEntry* entry = artifact->add_files();
      entry->set_path(path);
      entry->set_sha256(artifact::Sha256Hex(content));
      entry->set_size(content.size());
    }
    return grpc::Status::OK;
  }
  grpc::Status Download(grpc::ServerContext*, const v1::DownloadRequest* request,
                        grpc::ServerWriter<v1::DownloadChunk>* writer) override {
    ++downloads;
    v1::DownloadChunk chunk;
    chunk.set_data(sent.empty() ? files.at(request->path()).substr(0, cut) : sent);
    writer->Write(chunk);
    return cut == std::string::npos ? grpc::Status::OK : grpc::Status(grpc::StatusCode::DATA_LOSS, "cut off");
  }
  grpc::Status StartUpload(grpc::ServerContext*, const v1::StartUploadRequest* request,
                           v1::StartUploadResponse* response) override {
    std::string manifest;
    kind = request->kind();
    for (const v1::FileEntry& file : request->files()) {
      absl::StrAppend(&manifest, file.sha256(), " ", file.size(), " ", file.path(), "\n");
      response->add_offsets(0);
      uploaded[file.path()] = "";
      paths.push_back(file.path());
    }
    digest = absl::StrCat("sha256:", artifact::Sha256Hex(manifest));
    response->set_digest(digest);
    return grpc::Status::OK;
  }
  grpc::Status UploadChunks(grpc::ServerContext*, grpc::ServerReader<v1::UploadChunk>* reader,
                            v1::UploadChunksResponse*) override {
    v1::UploadChunk chunk;
    while (reader->Read(&chunk)) uploaded[paths.at(chunk.file())] += chunk.data();
    return grpc::Status::OK;
  }
  grpc::Status FinishUpload(grpc::ServerContext*, const v1::FinishUploadRequest*, v1::Artifact* artifact) override {
    artifact->set_digest(digest);
    return grpc::Status::OK;
  }
  grpc::Status DeleteArtifact(grpc::ServerContext*, const v1::DeleteArtifactRequest* request,
                              v1::DeleteArtifactResponse*) override {
    asked = request->digest();
    return grpc::Status::OK;
  }
  grpc::Status PinArtifact(grpc::ServerContext*, const v1::PinArtifactRequest* request, v1::Artifact*) override {
    asked = request->digest();
    return grpc::Status::OK;
  }
  std::map<std::string, std::string> files = {{"a.jsonl", "first\n"}, {"deep/b.jsonl", "second\n"}};
  std::map<std::string, std::string> uploaded;
  std::vector<std::string> paths;
  std::string project, asked, digest, kind, sent;
  size_t cut = std::string::npos;
  int downloads = 0;
};

class FakeJobs final : public v1::JobService::Service {
 public:
  grpc::Status ListJobs(grpc::ServerContext*, const v1::ListJobsRequest* request, v1::ListJobsResponse*) override {
    project = request->project();
    return grpc::Status::OK;
  }
  std::string project;
};

class FakeOversight final : public v1::OversightService::Service {
 public:
  grpc::Status GetLineage(grpc::ServerContext*, const v1::GetLineageRequest* request, v1::Lineage*) override {
    model = request->model();
    return grpc::Status::OK;
  }
  std::string model;
};

class FakeFeedback final : public v1::FeedbackService::Service {
 public:
  grpc::Status ExportComparisons(grpc::ServerContext*, const v1::ExportComparisonsRequest*,
                                 grpc::ServerWriter<v1::Comparison>* writer) override {
    v1::Comparison comparison;
    comparison.mutable_prompt()->set_text("Q");
    comparison.mutable_first()->set_text("a");
    comparison.mutable_second()->set_text("b");
    comparison.set_preference(v1::FIRST);
    writer->Write(comparison);
    return whole ? grpc::Status::OK : grpc::Status(grpc::StatusCode::ABORTED, "cut off");
  }
  grpc::Status ImportComparisons(grpc::ServerContext*, grpc::ServerReader<v1::ImportComparisonsRequest>* reader,
                                 v1::ImportComparisonsResponse* response) override {
    v1::ImportComparisonsRequest request;
    int64_t taken = 0;
    while (reader->Read(&request)) {
      project = request.project();
      most = std::max(most, request.comparisons_size());
      for (int i = 0; i < request.comparisons_size(); ++i) {
        if (request.comparisons(i).prompt().text() != "refused") {
          ++taken;
          continue;
        }
        v1::LineProblem& problem = *response->add_line_problems();
        problem.set_line(request.lines(i));
        problem.set_reason("refused there");
        response->set_rejected(response->rejected() + 1);
      }
    }
    known ? response->set_duplicates(taken) : response->set_imported(taken);
    return grpc::Status::OK;
  }
  bool whole = true, known = false;
  int most = 0;  // comparisons in a request
  std::string project;
};

class ArtifactCommandsTest : public testing::Test {
 protected:
  CommandResult Ctl(const std::string& arguments) {
    return RunCommand(
        absl::StrCat(BinDir(), "/rlhfctl --insecure --address 127.0.0.1:", server_->port(), " ", arguments));
  }
  std::string Read(const std::string& name) { return ReadFile(dir_.File(name)).value_or("no file"); }
  std::string Write(const std::string& name, const std::string& text) {
    EXPECT_TRUE(WriteFileDurably(dir_.File(name), text).ok());
    return dir_.File(name);
  }
  // Regular files below the folder.
  int Files(const std::string& folder) {
    int files = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File(folder)))
      files += entry.is_regular_file() ? 1 : 0;
    return files;
  }
  FakeArtifacts artifacts_;
  FakeJobs jobs_;
  FakeFeedback feedback_;
  FakeOversight oversight_;
  std::unique_ptr<RpcServer> server_ = ServeOnLoopback({&artifacts_, &jobs_, &feedback_, &oversight_});
  ScratchDir dir_;
};

TEST_F(ArtifactCommandsTest, TheBeginningOfADigestIsEnough) {
  const CommandResult deleted = Ctl("data delete sha256:ccccdddd0000");
  EXPECT_EQ(deleted.code, 0) << deleted.output;
  EXPECT_EQ(artifacts_.asked, FakeDigest("ccccdddd"));
  EXPECT_THAT(deleted.output, HasSubstr(FakeDigest("ccccdddd")));
  EXPECT_EQ(Ctl("models pin sha256:aaaabbbb2").code, 0);
  EXPECT_EQ(artifacts_.asked, FakeDigest("aaaabbbb2"));
  EXPECT_EQ(Ctl("data pull sha256:ccccdddd --out " + dir_.File("out")).code, 0);
  EXPECT_EQ(artifacts_.asked, FakeDigest("ccccdddd"));
  EXPECT_EQ(Ctl("data pull an/alias --out " + dir_.File("out")).code, 0);
  EXPECT_EQ(artifacts_.asked, "an/alias");
  EXPECT_EQ(Ctl("audit show --model sha256:aaaabbbb1").code, 0);
  EXPECT_EQ(oversight_.model, FakeDigest("aaaabbbb1"));
  artifacts_.asked = "";
  const CommandResult several = Ctl("data delete sha256:aaaabbbb");
  EXPECT_EQ(several.code, 2);
  EXPECT_THAT(several.output, HasSubstr("begins the digests of 2 artifacts"));
  EXPECT_THAT(Ctl("data delete sha256:aaaa").output, HasSubstr("at least 8 digits"));
  EXPECT_EQ(Ctl("data delete sha256:eeeeeeee").code, 1);
  EXPECT_EQ(artifacts_.asked, "");
}

// The cache of Hugging Face is where a user's models are.
TEST_F(ArtifactCommandsTest, AModelMayBeAFolderOfLinks) {
  ASSERT_TRUE(MakeDirs(dir_.File("model/onnx")).ok());
  Write("model/config.json", "{}");
  Write("model/model.safetensors", std::string(3'000'000, 'w'));
  Write("model/onnx/model.onnx", "onnx");
  const std::string digest = artifact::ComputeManifest(dir_.File("model"))->digest;
  const std::string linked = MakeLinkedFolder(dir_.File("model"), dir_.File("cache"));
  const CommandResult pushed = Ctl("models push " + linked);
  EXPECT_EQ(pushed.code, 0) << pushed.output;
  EXPECT_THAT(pushed.output, HasSubstr(digest));
  EXPECT_EQ(artifacts_.uploaded, (std::map<std::string, std::string>{{"config.json", "{}"},
                                                                     {"model.safetensors", std::string(3'000'000, 'w')},
                                                                     {"onnx/model.onnx", "onnx"}}));
  EXPECT_EQ(Ctl("audit show --model " + linked).code, 0);
  EXPECT_EQ(oversight_.model, digest);
  for (const auto& channel :
       {std::shared_ptr<grpc::Channel>(),
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials())}) {
    v1::JobSpec spec;
    spec.mutable_sft()->set_model("file:cache/snapshots/1");
    const auto named = UploadFileReferences(channel, dir_.path(), "default", &spec);
    EXPECT_TRUE(named.ok()) << named.status();
    EXPECT_EQ(spec.sft().model(), digest);
  }
  std::filesystem::remove(dir_.File("cache/blobs/1"));
  const CommandResult interrupted = Ctl("models push " + linked);
  EXPECT_EQ(interrupted.code, 2) << interrupted.output;
  EXPECT_THAT(interrupted.output, HasSubstr("where there is nothing: was a download interrupted?"));
}

TEST_F(ArtifactCommandsTest, WhatAJobNamesTwiceIsReadOnceAndWhatIsHiddenNever) {
  ASSERT_TRUE(MakeDirs(dir_.File("model/.git")).ok());
  Write("model/config.json", "{}");
  Write("model/.git/caf\xe9", "not of the model");
  const auto channel =
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials());
  v1::JobSpec spec;
  spec.mutable_ppo()->set_policy("file:model");
  spec.mutable_ppo()->set_reference("file:./model");
  const auto uploaded = UploadFileReferences(channel, dir_.path(), "default", &spec);
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  EXPECT_EQ(uploaded->size(), 1u);
  EXPECT_EQ(spec.ppo().reference(), spec.ppo().policy());
  EXPECT_EQ(artifacts_.kind, "model");
  spec.mutable_ppo()->set_prompts("file:" + Write("prompts.jsonl", "{}\n"));
  ASSERT_TRUE(UploadFileReferences(channel, dir_.File("elsewhere"), "default", &spec).ok());
  EXPECT_EQ(artifacts_.kind, "data");
}

TEST_F(ArtifactCommandsTest, ListingsAreOfTheProjectThatIsNamed) {
  artifacts_.project = jobs_.project = "unasked";
  EXPECT_EQ(Ctl("list").code, 0);
  EXPECT_EQ(Ctl("data list").code, 0);
  EXPECT_EQ(jobs_.project, "") << "all that the caller may see";
  EXPECT_EQ(artifacts_.project, "");
  EXPECT_EQ(Ctl("--project research list").code, 0);
  EXPECT_EQ(Ctl("data list --project research").code, 0);
  EXPECT_EQ(jobs_.project, "research");
  EXPECT_EQ(artifacts_.project, "research");
}

TEST_F(ArtifactCommandsTest, APullReplacesNoFileOfOnesOwn) {
  const std::string pull = "data pull some --out " + dir_.File("out");
  ASSERT_TRUE(MakeDirs(dir_.File("out/deep")).ok());
  Write("out/deep/b.jsonl", "mine\n");
  const CommandResult refused = Ctl(pull);
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.output, HasSubstr("out/deep/b.jsonl: expected no file, or the artifact's own, found another"));
  EXPECT_EQ(Read("out/deep/b.jsonl"), "mine\n");
  EXPECT_EQ(Files("out"), 1) << "nothing is written before all is known";
  EXPECT_EQ(Ctl(pull + " --overwrite").code, 0);
  EXPECT_EQ(Read("out/deep/b.jsonl"), "second\n");
  EXPECT_EQ(Read("out/a.jsonl"), "first\n");
  artifacts_.downloads = 0;
  EXPECT_EQ(Ctl(pull).code, 0) << "the artifact's own files";
  EXPECT_EQ(artifacts_.downloads, 0);
}

TEST_F(ArtifactCommandsTest, OtherBytesThanTheArtifactsAreRefused) {
  artifacts_.sent = "other\n";
  const CommandResult pulled = Ctl("data pull some --out " + dir_.File("out"));
  EXPECT_EQ(pulled.code, 1);
  EXPECT_THAT(pulled.output, HasSubstr("does not match its digest"));
  EXPECT_EQ(Files("out"), 0);
}

TEST_F(ArtifactCommandsTest, WhatIsCutOffLeavesNoFile) {
  artifacts_.cut = 3;
  EXPECT_EQ(Ctl("data pull some --out " + dir_.File("out")).code, 1);
  EXPECT_EQ(Files("out"), 0);
  artifacts_.cut = std::string::npos;
  for (const std::string& path : std::vector<std::string>{"../outside", dir_.File("outside"), "a//b", "./a"}) {
    artifacts_.files = {{path, "x"}};
    EXPECT_THAT(Ctl("data pull some --out " + dir_.File("out")).output, HasSubstr("names a file outside itself"))
        << path;
  }
  EXPECT_EQ(Read("outside"), "no file");

  Write("pairs.jsonl", "before");
  feedback_.whole = false;
  EXPECT_EQ(Ctl("feedback export --set s --out " + dir_.File("pairs.jsonl")).code, 1);
  EXPECT_EQ(Read("pairs.jsonl"), "before");
  feedback_.whole = true;
  EXPECT_EQ(Ctl("feedback export --set s --out " + dir_.File("pairs.jsonl")).code, 0);
  EXPECT_THAT(Read("pairs.jsonl"), HasSubstr("\"chosen\":\"a\""));
  const CommandResult full =
      RunCommand(absl::StrCat("( ", BinDir(), "/rlhfctl --insecure --address 127.0.0.1:", server_->port(),
                              " feedback export --set s 1< /dev/null )"));
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr("cannot write the standard output"));
}

TEST_F(ArtifactCommandsTest, AnImportSaysWhatItDidNotTake) {
  const std::string pair = "{\"prompt\":\"Q\",\"chosen\":\"a\",\"rejected\":\"b\"}\n";
  std::string wrong;
  for (int i = 0; i < 50; ++i) wrong += "{\"prompt\":\"Q\"}\n";
  const CommandResult some = Ctl("feedback import --set s " + Write("some.jsonl", pair + wrong));
  EXPECT_EQ(some.code, 1);
  EXPECT_THAT(some.output, HasSubstr("1 imported, 0 duplicates, 50 rejected"));
  EXPECT_THAT(some.output, HasSubstr("some.jsonl:21: "));
  EXPECT_THAT(some.output, Not(HasSubstr("some.jsonl:22: ")));
  EXPECT_THAT(some.output, HasSubstr("and 30 more"));
  EXPECT_EQ(Ctl("feedback import --set s " + Write("all.jsonl", pair + pair)).code, 0);
  // Of a damaged file what comes before the damage is taken, and is said to be.
  std::string many;
  for (int i = 0; i < 20000; ++i)
    absl::StrAppend(&many, "{\"prompt\":\"Q", i * 7919, "\",\"chosen\":\"a\",\"rejected\":\"b\"}\n");
  Write("many.jsonl", many);
  ASSERT_EQ(RunCommand("gzip " + dir_.File("many.jsonl")).code, 0);
  const std::string whole = Read("many.jsonl.gz");
  const CommandResult damaged =
      Ctl("feedback import --set s " + Write("cut.jsonl.gz", whole.substr(0, whole.size() * 3 / 4)));
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.output, testing::ContainsRegex("the [0-9]+ comparisons before it were imported"));
  feedback_.known = true;
  EXPECT_THAT(Ctl("feedback import --set s " + dir_.File("cut.jsonl.gz")).output,
              testing::ContainsRegex("the [0-9]+ comparisons before it were imported"));
  const CommandResult empty = Ctl("feedback import --set s " + Write("empty.jsonl", "\n"));
  EXPECT_EQ(empty.code, 2);
  EXPECT_THAT(empty.output, HasSubstr("expected at least one record in the files, found none"));
}

TEST_F(ArtifactCommandsTest, AnImportNamesFilesAndLinesOfBothSidesProblems) {
  const auto pair = [](const std::string& prompt) {
    return absl::StrCat("{\"prompt\":\"", prompt, "\",\"chosen\":\"a\",\"rejected\":\"b\"}\n");
  };
  std::string many = pair("refused");
  for (int i = 0; i < 4500; ++i) absl::StrAppend(&many, pair(absl::StrCat("Q", i)), i == 2500 ? "{}\n" : "");
  const std::string files =
      Write("many.jsonl", many) + " " + Write("few.jsonl", "\n" + pair("Q") + pair("refused") + "{}\n");
  const CommandResult some = Ctl("--project research feedback import --set s " + files);
  EXPECT_THAT(some.output, HasSubstr("4501 imported, 0 duplicates, 4 rejected"));
  EXPECT_THAT(some.output, testing::ContainsRegex(
                               "many.jsonl:1: refused there\n.*many.jsonl:2503: expected the key \"prompt\", found "
                               "none\n.*few.jsonl:3: refused there\n.*few.jsonl:4: expected the key"));
  EXPECT_EQ(feedback_.project, "research");
  EXPECT_LE(feedback_.most, 2000) << "below the service's bound on messages";
  std::string wrong;
  for (int i = 0; i < 1500; ++i) wrong += "{}\n";
  const CommandResult first =
      Ctl("--output json feedback import --set s " + Write("wrong.jsonl", wrong + pair("refused") + pair("refused")));
  EXPECT_THAT(first.output, HasSubstr("\"rejected\": \"1502\""));
  size_t named = 0;
  for (size_t at = first.output.find("wrong.jsonl:"); at != std::string::npos;
       at = first.output.find("wrong.jsonl:", at + 1))
    ++named;
  EXPECT_EQ(named, 1000u);
}

}  // namespace
}  // namespace rlhf::cli
