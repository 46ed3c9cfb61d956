// Artifacts over the API listener of a real coordinator: uploads that are cut, resumed and verified, aliases,
// downloads.
#include <chrono>
#include <filesystem>
#include <set>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "artifact/artifact_root.h"
#include "artifact/digest.h"
#include "client/cpp/artifact_cache.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"
#include "rlhf/v1/job_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace rlhf::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ArtifactsTest : public CoordinatorFixture {
 protected:
  using Stub = v1::ArtifactService::Stub;
  static v1::StartUploadRequest Manifest(const std::map<std::string, std::string>& files,
                                         const std::string& alias = "") {
    v1::StartUploadRequest request;
    request.set_project("default");
    request.set_kind("data");
    request.set_alias(alias);
    for (const auto& [path, content] : files) {
      v1::FileEntry* entry = request.add_files();
      entry->set_path(path);
      entry->set_size(content.size());
      entry->set_sha256(artifact::Sha256Hex(content));
    }
    return request;
  }
  absl::StatusOr<v1::StartUploadResponse> StartUpload(const v1::StartUploadRequest& request) {
    return Call(v1::ArtifactService::NewStub(Api("submitter")), &Stub::StartUpload, request);
  }
  absl::Status Send(const std::string& upload, uint32_t file, uint64_t offset, const std::string& data) {
    const auto stub = v1::ArtifactService::NewStub(Api("submitter"));
    const auto context = client::MakeContext(absl::Seconds(30));
    v1::UploadChunksResponse response;
    const auto writer = stub->UploadChunks(context.get(), &response);
    v1::UploadChunk chunk;
    chunk.set_upload_id(upload);
    chunk.set_file(file);
    chunk.set_offset(offset);
    chunk.set_data(data);
    writer->Write(chunk);
    writer->WritesDone();
    return FromGrpc(writer->Finish());
  }
  absl::StatusOr<v1::Artifact> Finish(const std::string& upload) {
    v1::FinishUploadRequest request;
    request.set_upload_id(upload);
    return Call(v1::ArtifactService::NewStub(Api("submitter")), &Stub::FinishUpload, request);
  }
  absl::StatusOr<v1::Artifact> Get(const std::string& reference, const std::string& role = "submitter") {
    v1::GetArtifactRequest request;
    request.set_reference(reference);
    return Call(v1::ArtifactService::NewStub(Api(role)), &Stub::GetArtifact, request);
  }
  absl::StatusOr<std::string> Download(const std::shared_ptr<grpc::Channel>& channel, const std::string& digest,
                                       const std::string& path, uint64_t offset) {
    v1::DownloadRequest request;
    request.set_digest(digest);
    request.set_path(path);
    request.set_offset(offset);
    const auto context = client::MakeContext(absl::Seconds(30));
    const auto stub = v1::ArtifactService::NewStub(channel);
    const auto reader = stub->Download(context.get(), request);
    std::string content;
    v1::DownloadChunk chunk;
    while (reader->Read(&chunk)) {
      EXPECT_EQ(chunk.offset(), offset + content.size());
      content += chunk.data();
    }
    RLHF_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
    return content;
  }
};

TEST_F(ArtifactsTest, AFolderGoesUpAndComesDown) {
  const std::string big(3'000'000, 'x');
  const std::string source = dir_.File("source");
  ASSERT_TRUE(MakeDirs(source + "/sub").ok());
  ASSERT_TRUE(WriteFileDurably(source + "/a.json", "{}").ok());
  ASSERT_TRUE(WriteFileDurably(source + "/empty", "").ok());
  ASSERT_TRUE(WriteFileDurably(source + "/sub/big.bin", big).ok());
  const auto artifact = client::UploadArtifact(Api("submitter"), source, "model", "default", "base");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ(artifact->digest(), artifact::ComputeManifest(source)->digest);
  EXPECT_EQ(artifact->kind(), "model");
  EXPECT_EQ(artifact->created_by(), "submitter");
  EXPECT_THAT(artifact->aliases(), ElementsAre("base"));

  for (int restart = 0; restart < 2; ++restart) {
    const auto found = Get("base");
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->digest(), artifact->digest());
    EXPECT_EQ(*Download(Api("submitter"), found->digest(), "sub/big.bin", 0), big);
    EXPECT_EQ(*Download(Api("submitter"), found->digest(), "sub/big.bin", 2'999'990), std::string(10, 'x'));
    EXPECT_EQ(*Download(Api("submitter"), found->digest(), "empty", 0), "");
    Restart();
  }
  // The fleet reads by digest, without a project.
  EXPECT_EQ(*Download(Fleet("reward_server", "r0"), artifact->digest(), "a.json", 0), "{}");
  // The same again is there already, under another alias too.
  const auto again = client::UploadArtifact(Api("submitter"), source, "model", "default", "second");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(again->aliases(), ElementsAre("base", "second"));
}

TEST_F(ArtifactsTest, AnUploadGoesOnAfterARestart) {
  const std::map<std::string, std::string> files = {{"a", "0123456789"}, {"b", "abcdef"}};
  const auto started = StartUpload(Manifest(files));
  ASSERT_TRUE(started.ok()) << started.status();
  EXPECT_THAT(started->offsets(), ElementsAre(0, 0));
  ASSERT_TRUE(Send(started->upload_id(), 0, 0, "01234").ok());
  EXPECT_EQ(Finish(started->upload_id()).status().code(), absl::StatusCode::kFailedPrecondition) << "bytes are missing";
  EXPECT_EQ(Send(started->upload_id(), 0, 7, "789").code(), absl::StatusCode::kFailedPrecondition) << "a hole";
  EXPECT_TRUE(absl::IsInvalidArgument(Send(started->upload_id(), 0, 5, "567890"))) << "more than the manifest says";
  EXPECT_TRUE(absl::IsInvalidArgument(Send(started->upload_id(), 7, 0, "x")));

  Restart();
  EXPECT_EQ(Send(started->upload_id(), 0, 5, "56789").code(), absl::StatusCode::kNotFound)
      << "it must be started again";
  const auto resumed = StartUpload(Manifest(files, "set"));
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_EQ(resumed->upload_id(), started->upload_id());
  EXPECT_THAT(resumed->offsets(), ElementsAre(5, 0));
  ASSERT_TRUE(Send(resumed->upload_id(), 0, 3, "3456789").ok()) << "an overlap is fine";
  ASSERT_TRUE(Send(resumed->upload_id(), 1, 0, "abcdef").ok());
  const auto artifact = Finish(resumed->upload_id());
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ(artifact->digest(), resumed->digest());
  EXPECT_EQ(Finish(resumed->upload_id())->digest(), artifact->digest()) << "the answer may have been lost";
  EXPECT_EQ(*Download(Api("submitter"), artifact->digest(), "a", 0), "0123456789");
  EXPECT_TRUE(StartUpload(Manifest(files))->complete());
}

TEST_F(ArtifactsTest, WrongBytesAreFoundAndCanBeSentAgain) {
  const auto started = StartUpload(Manifest({{"a", "good"}, {"b", "fine"}}));
  ASSERT_TRUE(started.ok()) << started.status();
  ASSERT_TRUE(Send(started->upload_id(), 0, 0, "evil").ok());
  ASSERT_TRUE(Send(started->upload_id(), 1, 0, "fine").ok());
  const auto refused = Finish(started->upload_id());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReasonOf(refused.status()), v1::DIGEST_MISMATCH);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("a: expected SHA-256"));
  EXPECT_THAT(StartUpload(Manifest({{"a", "good"}, {"b", "fine"}}))->offsets(), ElementsAre(0, 4));
  ASSERT_TRUE(Send(started->upload_id(), 0, 0, "good").ok());
  EXPECT_TRUE(Finish(started->upload_id()).ok());
}

TEST_F(ArtifactsTest, HostileManifestsAreRefused) {
  for (const char* path : {"../evil", "/etc/passwd", "a/../../b", "", ".manifest.json", "a\nb"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(Manifest({{path, "x"}})).status())) << path;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(Manifest({})).status())) << "no files";
  EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(Manifest({{"a", "x"}, {"a/b", "y"}})).status()))
      << "a file and a folder";
  v1::StartUploadRequest twice = Manifest({{"a", "x"}});
  *twice.add_files() = twice.files(0);
  EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(twice).status()));
  v1::StartUploadRequest bad_digest = Manifest({{"a", "x"}});
  bad_digest.mutable_files(0)->set_sha256("zz");
  EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(bad_digest).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(StartUpload(Manifest({{"a", "x"}}, "sha256:00")).status()))
      << "an alias that looks like a digest";
}

TEST_F(ArtifactsTest, AnUnknownNameNamesTheNearest) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{}\n").ok());
  ASSERT_TRUE(client::UploadArtifact(Api("submitter"), dir_.File("data.jsonl"), "data", "default", "prompts").ok());
  const auto missing = Get("promts");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(missing.status()), v1::UNKNOWN_ARTIFACT);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("the nearest is \"prompts\""));
  EXPECT_EQ(ReasonOf(Get("sha256:" + std::string(64, '0')).status()), v1::UNKNOWN_ARTIFACT);
  const auto digest = Get("prompts")->digest();
  EXPECT_EQ(Download(Api("submitter"), digest, "other.jsonl", 0).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Download(Api("submitter"), digest, "data.jsonl", 99).status().code(), absl::StatusCode::kOutOfRange);
}

TEST_F(ArtifactsTest, TheBeginningOfADigestIsEnoughInAJobToo) {
  std::set<std::string> digests;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), absl::StrCat("{\"prompt\":\"", i, "\"}\n")).ok());
    const auto data = client::UploadArtifact(Api("submitter"), dir_.File("data.jsonl"), "data", "default", "");
    ASSERT_TRUE(data.ok()) << data.status();
    digests.insert(data->digest());
  }
  const std::string digest = *digests.begin(), beginning = digest.substr(0, sizeof("sha256:") - 1 + 12);
  EXPECT_EQ(Get(beginning)->digest(), digest);
  const auto few = Get(digest.substr(0, sizeof("sha256:") - 1 + 7));
  EXPECT_TRUE(absl::IsInvalidArgument(few.status())) << few.status();
  EXPECT_THAT(std::string(few.status().message()), HasSubstr("at least 8 digits"));
  EXPECT_EQ(ReasonOf(Get("sha256:" + std::string(12, '0')).status()), v1::UNKNOWN_ARTIFACT);
  EXPECT_EQ(ReasonOf(Get(digest + "0").status()), v1::UNKNOWN_ARTIFACT);
  ASSERT_TRUE(MakeDirs(dir_.File("model")).ok());
  ASSERT_TRUE(WriteFileDurably(dir_.File("model/config.json"), "{}").ok());
  ASSERT_TRUE(client::UploadArtifact(Api("submitter"), dir_.File("model"), "model", "default", "base").ok());
  v1::SubmitJobRequest submit;
  submit.set_request_id("short");
  submit.mutable_spec()->set_name("short");
  submit.mutable_spec()->mutable_sample()->set_model("base");
  submit.mutable_spec()->mutable_sample()->set_prompts(beginning);
  const auto job = Call(v1::JobService::NewStub(Api("submitter")), &v1::JobService::Stub::SubmitJob, submit);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->job().resolved().at(beginning), digest);
}

TEST_F(ArtifactsTest, AnotherProjectSeesNothing) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{}\n").ok());
  const auto artifact = client::UploadArtifact(Api("submitter"), dir_.File("data.jsonl"), "data", "default", "prompts");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  v1::CreateTokenRequest create;
  create.set_subject("ada");
  create.set_project("red");
  create.add_roles(v1::SUBMITTER);
  const auto token = Call(v1::AdminService::NewStub(Api("admin")), &v1::AdminService::Stub::CreateToken, create);
  ASSERT_TRUE(token.ok()) << token.status();
  const auto red = ApiWithToken(token->secret());
  EXPECT_EQ(Download(red, artifact->digest(), "data.jsonl", 0).status().code(), absl::StatusCode::kNotFound);
  const auto list = Call(v1::ArtifactService::NewStub(red), &Stub::ListArtifacts, v1::ListArtifactsRequest());
  ASSERT_TRUE(list.ok()) << list.status();
  EXPECT_EQ(list->artifacts_size(), 0);
  v1::DeleteArtifactRequest remove;
  remove.set_digest(artifact->digest());
  v1::PinArtifactRequest pin;
  pin.set_digest(artifact->digest());
  v1::ListArtifactsRequest behind;
  behind.mutable_page()->set_page_token(artifact->digest());
  v1::GetArtifactRequest get;
  get.set_reference(artifact->digest());
  v1::FinishUploadRequest finish;  // the id is no secret to who knows the digest
  finish.set_upload_id(artifact::Sha256Hex(absl::StrCat("default/", artifact->digest())).substr(0, 32));
  ASSERT_TRUE(Finish(finish.upload_id()).ok()) << "its own project is told again";
  // Every answer is the one that there is for what nobody has.
  const auto answers = [&](const std::string& digest, const std::string& upload) {
    std::vector<std::string> all;
    const auto stub = v1::ArtifactService::NewStub(red);
    const auto note = [&](const absl::Status& status) {
      EXPECT_FALSE(status.ok());
      all.push_back(absl::StrReplaceAll(status.ToString(), {{digest, "DIGEST"}, {upload, "UPLOAD"}}));
    };
    remove.set_digest(digest);
    note(Call(stub, &Stub::DeleteArtifact, remove).status());
    pin.set_digest(digest);
    note(Call(stub, &Stub::PinArtifact, pin).status());
    behind.mutable_page()->set_page_token(digest);
    note(Call(stub, &Stub::ListArtifacts, behind).status());
    get.set_reference(digest);
    note(Call(stub, &Stub::GetArtifact, get).status());
    finish.set_upload_id(upload);
    note(Call(stub, &Stub::FinishUpload, finish).status());
    return all;
  };
  EXPECT_EQ(answers(artifact->digest(), finish.upload_id()),
            answers("sha256:" + std::string(64, '0'), std::string(32, '0')));
  // Knowing a digest is not having the bytes: the other project uploads them itself, and then sees them.
  v1::StartUploadRequest own = Manifest({{"data.jsonl", "{}\n"}});
  own.set_project("red");
  const auto started = Call(v1::ArtifactService::NewStub(red), &Stub::StartUpload, own);
  ASSERT_TRUE(started.ok()) << started.status();
  EXPECT_FALSE(started->complete());
  EXPECT_EQ(Send(started->upload_id(), 0, 0, "{}\n").code(), absl::StatusCode::kNotFound) << "another project's upload";
  ASSERT_TRUE(client::UploadArtifact(red, dir_.File("data.jsonl"), "data", "red", "mine").ok());
  EXPECT_EQ(*Download(red, artifact->digest(), "data.jsonl", 0), "{}\n");
}

TEST_F(ArtifactsTest, WhatIsNamedOrPinnedStays) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("data.jsonl"), "{}\n").ok());
  const auto artifact = client::UploadArtifact(Api("submitter"), dir_.File("data.jsonl"), "data", "default", "prompts");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  const auto stub = v1::ArtifactService::NewStub(Api("submitter"));
  v1::DeleteArtifactRequest remove;
  remove.set_digest(artifact->digest());
  EXPECT_EQ(Call(stub, &Stub::DeleteArtifact, remove).status().code(), absl::StatusCode::kFailedPrecondition)
      << "it has an alias";
  v1::PinArtifactRequest pin;
  pin.set_digest(artifact->digest());
  pin.set_pinned(true);
  EXPECT_TRUE(Call(stub, &Stub::PinArtifact, pin)->pinned());
  v1::SetAliasRequest alias;
  alias.set_project("default");
  alias.set_alias("prompts");
  alias.set_remove(true);
  const auto unnamed = Call(stub, &Stub::SetAlias, alias);
  ASSERT_TRUE(unnamed.ok()) << unnamed.status();
  EXPECT_EQ(unnamed->aliases_size(), 0);
  EXPECT_EQ(Call(stub, &Stub::DeleteArtifact, remove).status().code(), absl::StatusCode::kFailedPrecondition)
      << "it is pinned";
  pin.set_pinned(false);
  ASSERT_TRUE(Call(stub, &Stub::PinArtifact, pin).ok());
  ASSERT_TRUE(Call(stub, &Stub::DeleteArtifact, remove).ok());
  EXPECT_EQ(Get(artifact->digest()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(artifact::ArtifactRoot(dir_.File("artifacts")).Has(artifact->digest()));

  // Whoever moves a name or removes what is there is on record, and what was refused or the fleet did is not.
  const auto audit = Call(v1::OversightService::NewStub(Api("overseer")), &v1::OversightService::Stub::ListAudit,
                          v1::ListAuditRequest());
  ASSERT_TRUE(audit.ok()) << audit.status();
  std::vector<std::string> seen;
  for (const v1::AuditRecord& record : audit->records()) {
    if (!absl::StartsWith(record.action(), "artifact.")) continue;
    EXPECT_EQ(record.subject(), "submitter");
    seen.push_back(absl::StrCat(record.action(), " ", record.object()));
  }
  const std::string digest = artifact->digest();
  EXPECT_THAT(seen,
              ElementsAre("artifact.upload " + digest, "artifact.alias default/prompts", "artifact.pin " + digest,
                          "artifact.unalias default/prompts", "artifact.unpin " + digest, "artifact.delete " + digest));
}

TEST_F(ArtifactsTest, ARoleRegistersWhatItPutIntoTheRoot) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("weights"), "w").ok());
  const auto manifest = artifact::ArtifactRoot(dir_.File("artifacts")).Publish(dir_.File("weights"));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  v1::RegisterArtifactRequest request;
  request.set_digest(manifest->digest);
  request.set_kind("checkpoint");
  request.set_created_by("job-1");
  const auto learner = v1::ArtifactService::NewStub(Fleet("learner", "l0"));
  const auto artifact = Call(learner, &Stub::RegisterArtifact, request);
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  EXPECT_EQ(artifact->project(), "default");
  EXPECT_EQ(artifact->total_size(), 1u);
  EXPECT_EQ(Get(manifest->digest)->kind(), "checkpoint");
  request.set_digest("sha256:" + std::string(64, '0'));
  EXPECT_EQ(ReasonOf(Call(learner, &Stub::RegisterArtifact, request).status()), v1::UNKNOWN_ARTIFACT);
  EXPECT_EQ(Call(v1::ArtifactService::NewStub(Api("submitter")), &Stub::RegisterArtifact, request).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(ArtifactsTest, ARootWhoseVolumeIsNotMountedIsNotTakenForLost) {
  ASSERT_TRUE(WriteFileDurably(dir_.File("file"), "text").ok());
  const auto artifact = client::UploadArtifact(Api("submitter"), dir_.File("file"), "data", "default", "");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  ASSERT_TRUE(WriteFileDurably(dir_.File("other"), "other").ok());
  const auto other = client::UploadArtifact(Api("submitter"), dir_.File("other"), "data", "default", "");
  ASSERT_TRUE(other.ok()) << other.status();
  const std::string root = dir_.File("artifacts");
  std::filesystem::rename(root, dir_.File("away"));
  std::filesystem::create_directory(root);
  const auto reward_server = Fleet("reward_server", "r0");
  absl::Status status = Download(reward_server, artifact->digest(), "file", 0).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(ReasonOf(status), v1::STORE_UNAVAILABLE);
  EXPECT_THAT(status.message(), HasSubstr("is its volume mounted?"));
  v1::RegisterArtifactRequest request;
  request.set_digest("sha256:" + std::string(64, '0'));
  const auto learner = v1::ArtifactService::NewStub(Fleet("learner", "l0"));
  EXPECT_EQ(ReasonOf(Call(learner, &Stub::RegisterArtifact, request).status()), v1::STORE_UNAVAILABLE);
  // What is new would be under the volume once it is there, and make the folder look as if it were.
  EXPECT_EQ(ReasonOf(StartUpload(Manifest({{"new", "x"}})).status()), v1::STORE_UNAVAILABLE);
  std::filesystem::remove_all(root);
  std::filesystem::rename(dir_.File("away"), root);
  EXPECT_EQ(*Download(reward_server, artifact->digest(), "file", 0), "text");
  // One that is gone while others are there is lost.
  std::filesystem::remove_all(absl::StrCat(root, "/sha256/", artifact->digest().substr(7)));
  status = Download(reward_server, artifact->digest(), "file", 0).status();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
}

TEST_F(ArtifactsTest, ListsInPages) {
  for (int i = 0; i < 5; ++i) {
    const std::string path = dir_.File(absl::StrCat("f", i));
    ASSERT_TRUE(WriteFileDurably(path, absl::StrCat(i)).ok());
    ASSERT_TRUE(client::UploadArtifact(Api("submitter"), path, i == 0 ? "model" : "data", "default", "").ok());
  }
  const auto stub = v1::ArtifactService::NewStub(Api("submitter"));
  v1::ListArtifactsRequest request;
  request.set_kind("data");
  request.mutable_page()->set_page_size(3);
  std::vector<std::string> found;
  do {
    const auto page = Call(stub, &Stub::ListArtifacts, request);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const v1::Artifact& artifact : page->artifacts()) found.push_back(artifact.files(0).path());
    request.mutable_page()->set_page_token(page->next_page_token());
  } while (!request.page().page_token().empty());
  EXPECT_THAT(found, ElementsAre("f4", "f3", "f2", "f1")) << "newest first";
  request.mutable_page()->set_page_size(1001);
  EXPECT_TRUE(absl::IsInvalidArgument(Call(stub, &Stub::ListArtifacts, request).status()));
}

TEST_F(ArtifactsTest, WhatAKilledProcessLeftInStagingGoesAndUploadsStayAWeek) {
  const auto staged = [&](const std::string& name) { return dir_.File("artifacts/.staging/" + name); };
  const auto put = [&](const std::string& name, int hours) {
    ASSERT_TRUE(MakeDirs(staged(name)).ok());
    ASSERT_TRUE(WriteFileDurably(staged(name) + "/part", "x").ok());
    const auto then = std::filesystem::file_time_type::clock::now() - std::chrono::hours(hours);
    for (const std::string& path : {staged(name) + "/part", staged(name)}) std::filesystem::last_write_time(path, then);
  };
  put("7-0-1", 25);
  put("7-1-1", 23);
  put("upload-a", 6 * 24);
  put("upload-b", 8 * 24);
  Restart();
  for (const absl::Time deadline = absl::Now() + absl::Seconds(20);
       std::filesystem::exists(staged("7-0-1")) && absl::Now() < deadline;)
    absl::SleepFor(absl::Milliseconds(10));  // in the background: nothing says when
  EXPECT_FALSE(std::filesystem::exists(staged("7-0-1")));
  EXPECT_TRUE(std::filesystem::exists(staged("7-1-1")));
  EXPECT_TRUE(std::filesystem::exists(staged("upload-a")));
  EXPECT_FALSE(std::filesystem::exists(staged("upload-b")));
}

TEST_F(ArtifactsTest, ImportedComparisonsBecomeADataArtifact) {
  const auto stub = v1::FeedbackService::NewStub(Api("submitter"));
  const auto import = [&](const std::vector<std::string>& ids) {
    const auto context = client::MakeContext(absl::Seconds(30));
    v1::ImportComparisonsResponse response;
    const auto writer = stub->ImportComparisons(context.get(), &response);
    for (const std::string& id : ids) {
      v1::ImportComparisonsRequest request;
      request.set_set("human");
      v1::Comparison* comparison = request.add_comparisons();
      comparison->set_id(id);
      comparison->mutable_prompt()->set_text("Who wrote Ygrec?");
      comparison->mutable_first()->set_text("It was Bob.");
      comparison->mutable_second()->set_text("I do not know.");
      if (id != "bad") comparison->set_preference(v1::SECOND);
      writer->Write(request);
    }
    writer->WritesDone();
    EXPECT_TRUE(writer->Finish().ok());
    return response;
  };
  const auto first = import({"c1", "c2", "bad"});
  EXPECT_EQ(first.imported(), 2);
  EXPECT_THAT(first.problems(), ElementsAre(HasSubstr("comparisons[2]: preference")));
  const auto second = import({"c2", "c3"});
  EXPECT_EQ(second.imported(), 1);
  EXPECT_EQ(second.duplicates(), 1);
  const auto artifact = Get("human");
  ASSERT_TRUE(artifact.ok()) << artifact.status();
  const auto lines = Download(Api("submitter"), artifact->digest(), "comparisons.jsonl", 0);
  ASSERT_TRUE(lines.ok()) << lines.status();
  const std::string line = R"({"prompt":"Who wrote Ygrec?","chosen":"I do not know.","rejected":"It was Bob."})";
  EXPECT_EQ(*lines, absl::StrCat(line, "\n", line, "\n", line, "\n"));
  v1::ExportComparisonsRequest export_request;
  export_request.set_job_id("set:human");
  const auto context = client::MakeContext(absl::Seconds(30));
  const auto reader = stub->ExportComparisons(context.get(), export_request);
  v1::Comparison comparison;
  std::vector<std::string> ids;
  while (reader->Read(&comparison)) ids.push_back(comparison.id());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_THAT(ids, ElementsAre("c1", "c2", "c3"));
}

}  // namespace
}  // namespace rlhf::coordinator
