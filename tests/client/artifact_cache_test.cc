#include "client/cpp/artifact_cache.h"

#include <filesystem>
#include <fstream>
#include <map>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "artifact/manifest_entries.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/rpc_server.h"
#include "common/status_util.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "tests/testing/loopback_server.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::client {
namespace {

using testing::HasSubstr;

// An artifact service over an ArtifactRoot, whose streams can be made to break.
class FakeArtifacts final : public v1::ArtifactService::Service {
 public:
  explicit FakeArtifacts(const std::string& root) : root_(root) {}

  grpc::Status StartUpload(grpc::ServerContext*, const v1::StartUploadRequest* request,
                           v1::StartUploadResponse* response) override {
    absl::MutexLock lock(&mu_);
    ++starts_;
    std::string lines;
    for (const v1::FileEntry& file : request->files()) absl::StrAppend(&lines, file.sha256(), file.size(), file.path());
    auto& staging = uploads_[lines];
    if (staging.empty()) staging = *root_.MakeStaging();
    response->set_upload_id(staging);
    response->set_digest(expected_digest_);
    response->set_complete(root_.Has(expected_digest_));
    for (const v1::FileEntry& file : request->files()) {
      const std::string path = absl::StrCat(staging, "/", file.path());
      paths_[staging].push_back(path);
      response->add_offsets(std::filesystem::exists(path) ? std::filesystem::file_size(path) : 0);
    }
    return grpc::Status::OK;
  }
  grpc::Status UploadChunks(grpc::ServerContext*, grpc::ServerReader<v1::UploadChunk>* reader,
                            v1::UploadChunksResponse* response) override {
    v1::UploadChunk chunk;
    while (reader->Read(&chunk)) {
      absl::MutexLock lock(&mu_);
      const std::string& path = paths_[chunk.upload_id()][chunk.file()];
      std::filesystem::create_directories(std::filesystem::path(path).parent_path());
      std::ofstream out(path, std::ios::binary | std::ios::app);
      EXPECT_EQ(std::filesystem::file_size(path), chunk.offset());
      out << chunk.data();
      if (breaks_ > 0) {
        --breaks_;
        return {grpc::StatusCode::UNAVAILABLE, "broken on purpose"};
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status FinishUpload(grpc::ServerContext*, const v1::FinishUploadRequest* request,
                            v1::Artifact* response) override {
    const auto manifest = root_.PublishStaged(request->upload_id());
    if (!manifest.ok()) return ToGrpc(manifest.status());
    response->set_digest(manifest->digest);
    return grpc::Status::OK;
  }
  grpc::Status RegisterArtifact(grpc::ServerContext*, const v1::RegisterArtifactRequest* request,
                                v1::Artifact* response) override {
    absl::MutexLock lock(&mu_);
    registered_ = *request;
    if (finds_nothing_) return ToGrpc(WithReason(absl::NotFoundError("not in the root"), v1::UNKNOWN_ARTIFACT));
    return grpc::Status::OK;
  }
  grpc::Status GetArtifact(grpc::ServerContext*, const v1::GetArtifactRequest* request,
                           v1::Artifact* response) override {
    const auto manifest = root_.GetManifest(request->reference());
    if (!manifest.ok()) return ToGrpc(WithReason(manifest.status(), v1::UNKNOWN_ARTIFACT));
    response->set_digest(manifest->digest);
    *response->mutable_files() = artifact::EntriesOf(*manifest);
    for (v1::FileEntry& file : *response->mutable_files()) file.set_path(absl::StrCat(path_prefix_, file.path()));
    return grpc::Status::OK;
  }
  grpc::Status Download(grpc::ServerContext*, const v1::DownloadRequest* request,
                        grpc::ServerWriter<v1::DownloadChunk>* writer) override {
    absl::MutexLock lock(&mu_);
    ++downloads_;
    const auto dir = root_.Path(request->digest());
    if (!dir.ok()) return ToGrpc(dir.status());
    std::string bytes = *ReadFile(absl::StrCat(*dir, "/", request->path()));
    if (damage_ && !bytes.empty()) bytes[0] ^= 1;
    constexpr size_t kChunk = 1000;
    for (size_t offset = request->offset(); offset < bytes.size(); offset += kChunk) {
      v1::DownloadChunk chunk;
      chunk.set_offset(offset);
      chunk.set_data(bytes.substr(offset, kChunk));
      writer->Write(chunk);
      if (breaks_ > 0 && offset + kChunk < bytes.size()) {
        --breaks_;
        return {grpc::StatusCode::UNAVAILABLE, "broken on purpose"};
      }
    }
    return grpc::Status::OK;
  }

  artifact::ArtifactRoot root_;
  std::string expected_digest_;
  std::string path_prefix_;
  bool damage_ = false;
  absl::Mutex mu_;
  int breaks_ ABSL_GUARDED_BY(mu_) = 0;
  int starts_ ABSL_GUARDED_BY(mu_) = 0;
  int downloads_ ABSL_GUARDED_BY(mu_) = 0;
  bool finds_nothing_ ABSL_GUARDED_BY(mu_) = false;  // of what is to be registered: its root is another folder
  v1::RegisterArtifactRequest registered_ ABSL_GUARDED_BY(mu_);

 private:
  std::map<std::string, std::string> uploads_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::vector<std::string>> paths_ ABSL_GUARDED_BY(mu_);
};

class ArtifactCacheTest : public testing::Test {
 protected:
  ArtifactCacheTest() : service_(dir_.File("remote")) {
    server_ = ServeOnLoopback({&service_});
    ChannelOptions channel;
    channel.address = absl::StrCat("127.0.0.1:", server_->port());
    channel.tls.insecure = true;
    channel_ = *MakeChannel(channel);

    std::filesystem::create_directories(dir_.File("model/sub"));
    std::ofstream(dir_.File("model/config.json")) << "{}";
    std::ofstream(dir_.File("model/sub/weights")) << std::string(5000, 'w');
    std::ofstream(dir_.File("model/empty"));
  }

  std::string DigestOf(const std::string& path) {
    const auto manifest = artifact::ComputeManifest(path);
    EXPECT_TRUE(manifest.ok()) << manifest.status();
    return manifest.ok() ? manifest->digest : "";
  }

  ScratchDir dir_;
  FakeArtifacts service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(ArtifactCacheTest, DownloadsOnceAndVerified) {
  const auto published = service_.root_.Publish(dir_.File("model"));
  ASSERT_TRUE(published.ok()) << published.status();
  ArtifactCache cache("", dir_.File("private"), channel_);
  {
    absl::MutexLock lock(&service_.mu_);
    service_.breaks_ = 1;  // and goes on from where it broke
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const auto path = cache.Fetch(published->digest);
      ASSERT_TRUE(path.ok()) << path.status();
      EXPECT_EQ(DigestOf(*path), published->digest);
    });
  }
  for (std::thread& thread : threads) thread.join();
  absl::MutexLock lock(&service_.mu_);
  EXPECT_EQ(service_.downloads_, 3) << "two files with content, one of them in two parts";
}

TEST_F(ArtifactCacheTest, DamagedBytesAreNotKept) {
  const auto published = service_.root_.Publish(dir_.File("model"));
  ASSERT_TRUE(published.ok());
  service_.damage_ = true;
  ArtifactCache cache("", dir_.File("private"), channel_);
  const auto path = cache.Fetch(published->digest);
  EXPECT_TRUE(absl::IsDataLoss(path.status())) << path.status();
  EXPECT_EQ(ReasonOf(path.status()), v1::DIGEST_MISMATCH);
  EXPECT_FALSE(artifact::ArtifactRoot(dir_.File("private")).Has(published->digest));
  service_.damage_ = false;
  EXPECT_TRUE(cache.Fetch(published->digest).ok());
}

TEST_F(ArtifactCacheTest, PathsThatLeaveTheDirectoryAreRefused) {
  const auto published = service_.root_.Publish(dir_.File("model"));
  ASSERT_TRUE(published.ok());
  for (const char* prefix : {"../", "/", "a/../../", "./"}) {
    service_.path_prefix_ = prefix;
    ArtifactCache cache("", dir_.File("private"), channel_);
    EXPECT_THAT(std::string(cache.Fetch(published->digest).status().message()), HasSubstr("unusable path")) << prefix;
  }
}

TEST_F(ArtifactCacheTest, UnknownDigests) {
  const std::string digest = absl::StrCat("sha256:", std::string(64, '0'));
  ArtifactCache cache("", dir_.File("private"), channel_);
  const absl::Status unknown = cache.Fetch(digest).status();
  EXPECT_TRUE(absl::IsNotFound(unknown)) << unknown;
  EXPECT_EQ(ReasonOf(unknown), v1::UNKNOWN_ARTIFACT);
  ArtifactCache alone("", dir_.File("private"), nullptr);
  EXPECT_THAT(std::string(alone.Fetch(digest).status().message()), HasSubstr("there is no service to ask"));
  EXPECT_TRUE(absl::IsFailedPrecondition(alone.Publish(dir_.File("model"), "model", "default", "job").status()));
}

TEST_F(ArtifactCacheTest, TheSharedRootNeedsNoTransfer) {
  ArtifactCache cache(dir_.File("shared"), dir_.File("private"), channel_);
  const auto digest = cache.Publish(dir_.File("model"), "checkpoint", "project", "job-1");
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, DigestOf(dir_.File("model")));
  const auto path = cache.Fetch(*digest);
  ASSERT_TRUE(path.ok()) << path.status();
  EXPECT_THAT(*path, testing::StartsWith(dir_.File("shared")));
  absl::MutexLock lock(&service_.mu_);
  EXPECT_EQ(service_.registered_.digest(), *digest);
  EXPECT_EQ(service_.registered_.kind(), "checkpoint");
  EXPECT_EQ(service_.registered_.created_by(), "job-1");
  EXPECT_EQ(service_.downloads_, 0);
}

TEST_F(ArtifactCacheTest, WhatTheServiceDoesNotFindInItsRootIsUploaded) {
  {
    absl::MutexLock lock(&service_.mu_);
    service_.finds_nothing_ = true;
  }
  ArtifactCache cache(dir_.File("not-the-shared-one"), dir_.File("private"), channel_);
  std::filesystem::remove(dir_.File("model/empty"));  // the fake makes files when their bytes come
  service_.expected_digest_ = DigestOf(dir_.File("model"));
  const auto digest = cache.Publish(dir_.File("model"), "checkpoint", "project", "job-1");
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, service_.expected_digest_);
  EXPECT_TRUE(service_.root_.Verify(*digest).ok());
}

TEST_F(ArtifactCacheTest, UploadsGoOnWhereTheyBroke) {
  {
    absl::MutexLock lock(&service_.mu_);
    service_.breaks_ = 1;
  }
  ArtifactCache cache("", dir_.File("private"), channel_);
  // The fake makes files when their bytes come: an empty one has none.
  std::filesystem::remove(dir_.File("model/empty"));
  service_.expected_digest_ = DigestOf(dir_.File("model"));
  const auto digest = cache.Publish(dir_.File("model"), "model", "default", "ann");
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(*digest, service_.expected_digest_);
  EXPECT_TRUE(service_.root_.Verify(*digest).ok());
  const auto again = cache.Publish(dir_.File("model"), "model", "default", "ann");
  ASSERT_TRUE(again.ok()) << again.status();
  absl::MutexLock lock(&service_.mu_);
  EXPECT_EQ(service_.starts_, 3) << "once broken, once to its end, once found complete";
}

TEST_F(ArtifactCacheTest, ASingleFileIsAnArtifactToo) {
  service_.expected_digest_ = DigestOf(dir_.File("model/sub/weights"));
  const auto uploaded = UploadArtifact(channel_, dir_.File("model/sub/weights"), "data", "default", "alias");
  ASSERT_TRUE(uploaded.ok()) << uploaded.status();
  EXPECT_EQ(uploaded->digest(), service_.expected_digest_);
  EXPECT_FALSE(UploadArtifact(channel_, dir_.File("none"), "data", "default", "").ok());
}

}  // namespace
}  // namespace rlhf::client
