// The artifacts' volume may hang: the loop never touches it, and one kind of work holds up no other.
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "artifact/digest.h"
#include "common/status_util.h"
#include "coordinator/artifacts.h"
#include "tests/coordinator/manual_loop.h"
#include "tests/coordinator/memory_store.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::HasSubstr;

class ArtifactThreadsTest : public testing::Test {
 protected:
  static v1::StartUploadRequest Request(const std::string& content) {
    v1::StartUploadRequest request;
    request.set_project("default");
    request.set_kind("data");
    v1::FileEntry* file = request.add_files();
    file->set_path("prompts.jsonl");
    file->set_size(content.size());
    file->set_sha256(artifact::Sha256Hex(content));
    return request;
  }
  std::optional<absl::StatusOr<v1::StartUploadResponse>> Start(const v1::StartUploadRequest& request) {
    started_.reset();
    artifacts_->StartUpload(request, nullptr,
                            [this](absl::StatusOr<v1::StartUploadResponse> result) { started_ = std::move(result); });
    loop_.Run();
    return started_;
  }
  bool Touched() const { return std::filesystem::exists(root_); }

  const ScratchDir dir_;
  const std::string root_ = dir_.File("artifacts");
  FakeClock clock_;
  ManualLoop loop_{&clock_};
  QueuedBackground small_files_, hashing_;
  EdgeMemoryStore store_;
  const std::unique_ptr<Artifacts> artifacts_ = MakeArtifacts(&loop_, {&small_files_, &hashing_}, &store_, root_);
  std::optional<absl::StatusOr<v1::StartUploadResponse>> started_;
};

TEST_F(ArtifactThreadsTest, TheLoopTouchesNothingOfTheVolume) {
  ASSERT_TRUE(artifacts_->Recover().ok());
  artifacts_->SweepStaging();
  const Artifacts::Staging staging = artifacts_->NewStaging();
  const Artifacts::Finder find = artifacts_->Locate("sha256:" + std::string(64, 'a'));
  EXPECT_FALSE(Start(Request("{}")).has_value());
  EXPECT_FALSE(Touched());
  small_files_.RunAll();  // whatever is hashed meanwhile
  loop_.Run();
  ASSERT_TRUE(started_.has_value());
  ASSERT_TRUE(started_->ok()) << started_->status();
  EXPECT_TRUE(Touched());
  EXPECT_TRUE(absl::IsNotFound(find().status()));
  EXPECT_FALSE(std::filesystem::exists(staging.path));
  ASSERT_TRUE(staging.make().ok());
  EXPECT_TRUE(std::filesystem::is_directory(staging.path));
}

TEST_F(ArtifactThreadsTest, WhileItHangsNobodyBeginsToWaitForIt) {
  const Artifacts::Staging staging = artifacts_->NewStaging();
  const Artifacts::Finder find = artifacts_->Locate("sha256:" + std::string(64, 'a'));
  artifacts_->SetHangs("the volume of /artifacts does not answer");
  const auto refused = [](const absl::Status& status) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(ReasonOf(status), v1::STORE_UNAVAILABLE);
    EXPECT_THAT(std::string(status.message()), HasSubstr("does not answer"));
  };
  const auto started = Start(Request("{}"));
  ASSERT_TRUE(started.has_value()) << "it waits";
  refused(started->status());
  refused(staging.make());
  refused(find().status());
  EXPECT_FALSE(Touched());
  artifacts_->SetHangs("");
  EXPECT_FALSE(Start(Request("{}")).has_value());
  small_files_.RunAll();
  loop_.Run();
  ASSERT_TRUE(started_.has_value());
  EXPECT_TRUE(started_->ok()) << started_->status();
  EXPECT_TRUE(staging.make().ok());
}

// Of threads that are all held up.
class FullBackground final : public Background {
 public:
  void Run(absl::AnyInvocable<void()>) override { ADD_FAILURE() << "more waits"; }
  size_t waiting() const override { return 1000; }
};

TEST_F(ArtifactThreadsTest, WhatWaitsIsBounded) {
  FullBackground full;
  const auto artifacts = MakeArtifacts(&loop_, &full, &store_, root_);
  artifacts->StartUpload(Request("{}"), nullptr,
                         [this](absl::StatusOr<v1::StartUploadResponse> result) { started_ = std::move(result); });
  ASSERT_TRUE(started_.has_value());
  EXPECT_TRUE(absl::IsUnavailable(started_->status())) << started_->status();
  std::optional<absl::Status> registered;
  v1::RegisterArtifactRequest request;
  request.set_digest("sha256:" + std::string(64, 'a'));
  artifacts->Register(request, [&](absl::StatusOr<v1::Artifact> result) { registered = result.status(); });
  ASSERT_TRUE(registered.has_value());
  EXPECT_TRUE(absl::IsUnavailable(*registered)) << *registered;
}

}  // namespace
}  // namespace rlhf::coordinator
