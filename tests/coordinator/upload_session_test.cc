// Uploads and the room on their volume, which the test makes up.
#include "coordinator/upload_session.h"

#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/synchronization/notification.h"
#include "common/status_util.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf::coordinator {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kMb = 1 << 20;

class UploadSessionTest : public testing::Test {
 protected:
  absl::StatusOr<std::shared_ptr<UploadSession>> Open() {
    UploadRoom room;
    room.reserve_bytes = 80 * kMb;
    room.free_bytes = [this](const std::string&) { return free_; };
    return UploadSession::Open(request_, staging_, std::move(room));
  }
  void Declare(uint64_t size) {
    v1::FileEntry* file = request_.add_files();
    file->set_path("file" + std::to_string(request_.files_size()));
    file->set_size(size);
    file->set_sha256(std::string(64, '0'));
  }
  absl::Status Write(UploadSession* session, uint64_t offset, size_t bytes) {
    v1::UploadChunk chunk;
    chunk.set_offset(offset);
    chunk.set_data(std::string(bytes, 'x'));
    return session->Write(chunk);
  }

  ScratchDir dir_;
  const std::string staging_ = dir_.File("staging");
  v1::StartUploadRequest request_;
  std::optional<uint64_t> free_;
};

TEST_F(UploadSessionTest, WhatWouldNotLeaveTheReserveIsRefusedBeforeItIsSent) {
  Declare(2 * kMb);
  Declare(3 * kMb);
  free_ = 85 * kMb - 1;
  const absl::Status refused = Open().status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), v1::STORE_UNAVAILABLE);
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("80 MB stay free"), HasSubstr("5 MB are to come")));
  EXPECT_FALSE(std::filesystem::exists(staging_));
  free_ = 10 * kMb;  // less than the reserve
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
  free_ = 85 * kMb;
  EXPECT_TRUE(Open().ok());
  free_.reset();  // a volume that nobody can look at
  EXPECT_TRUE(Open().ok());
}

// As the loop asks, of a volume that hangs.
TEST_F(UploadSessionTest, WhatIsThereIsSaidWhileAWriteWaitsForTheVolume) {
  Declare(2 * kMb);
  absl::Notification begun, answers;
  bool hangs = false;
  UploadRoom room;
  room.free_bytes = [&](const std::string&) {
    if (hangs) {
      begun.Notify();
      answers.WaitForNotification();
    }
    return std::optional<uint64_t>();
  };
  const auto session = UploadSession::Open(request_, staging_, room);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(Write(session->get(), 0, 1000).ok());
  hangs = true;
  std::thread writer([&] { EXPECT_TRUE(Write(session->get(), 1000, 500).ok()); });
  begun.WaitForNotification();
  absl::Notification said;
  std::vector<uint64_t> offsets;
  std::thread loop([&] {
    offsets = (*session)->Offsets();
    said.Notify();
  });
  EXPECT_TRUE(said.WaitForNotificationWithTimeout(absl::Seconds(30)));
  answers.Notify();
  writer.join();
  loop.join();
  EXPECT_THAT(offsets, ElementsAre(1000));
  EXPECT_THAT((*session)->Offsets(), ElementsAre(1500));
}

TEST_F(UploadSessionTest, SizesBeyondAllVolumesAreRefused) {
  for (int i = 0; i < 3; ++i) Declare(uint64_t{1} << 63);
  free_ = uint64_t{1} << 50;
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(UploadSessionTest, WhatIsThereStaysWhenOthersTookTheRoomAndIsNotAskedForAgain) {
  Declare(2 * kMb);
  free_ = 82 * kMb;
  auto session = Open();
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(Write(session->get(), 0, kMb).ok());
  free_ = 80 * kMb;
  EXPECT_EQ(Write(session->get(), kMb, kMb).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Write(session->get(), 0, kMb).ok()) << "it is there already";
  EXPECT_THAT((*session)->Offsets(), ElementsAre(kMb));
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(std::filesystem::exists(staging_));
  free_ = 81 * kMb;
  auto again = Open();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT((*again)->Offsets(), ElementsAre(kMb));
  EXPECT_TRUE(Write(again->get(), kMb, kMb).ok());
}

}  // namespace
}  // namespace rlhf::coordinator
