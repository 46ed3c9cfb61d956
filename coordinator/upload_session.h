// One upload into a staging folder: which bytes are there, and taking more. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "rlhf/v1/artifact_service.pb.h"

namespace rlhf::coordinator {

// The digest an artifact of these files has. InvalidArgument for a bad path, size or digest, duplicates, or no files at
// all.
absl::StatusOr<std::string> DigestOf(const google::protobuf::RepeatedPtrField<v1::FileEntry>& files);

// Bytes that this process may still write to the volume of a folder; nothing when nobody can say.
std::optional<uint64_t> FreeBytesOf(const std::string& folder);

// What uploads leave free on their volume: others write to it, and a volume without any room takes the coordinator
// down.
struct UploadRoom {
  uint64_t reserve_bytes = 0;
  std::function<std::optional<uint64_t>(const std::string& folder)> free_bytes = FreeBytesOf;
};

class UploadSession {
 public:
  // Finds what an earlier session (also of an earlier process) left in the folder. ResourceExhausted when the rest of
  // what the manifest says would not leave the reserve.
  static absl::StatusOr<std::shared_ptr<UploadSession>> Open(const v1::StartUploadRequest& request,
                                                             const std::string& staging_dir, UploadRoom room = {});

  std::vector<uint64_t> Offsets() const;  // does not wait for the volume
  // FailedPrecondition for a hole; bytes that are there already are accepted and not written again. ResourceExhausted
  // when they would not leave the reserve: what is there stays, and the upload can go on later.
  absl::Status Write(const v1::UploadChunk& chunk);
  // Every file is complete and has its digest. FailedPrecondition while bytes are missing; DataLoss with
  // DIGEST_MISMATCH naming the file, which then starts from nothing. No Write is taken from here on unless it fails.
  absl::Status Verify();
  const v1::StartUploadRequest& request() const { return request_; }
  const std::string& staging_dir() const { return staging_dir_; }

 private:
  UploadSession(v1::StartUploadRequest request, std::string dir, UploadRoom room)
      : request_(std::move(request)), staging_dir_(std::move(dir)), room_(std::move(room)) {}
  std::string PathOf(int file) const;
  // Whether so many more bytes leave the reserve.
  absl::Status CheckRoom(uint64_t bytes) const;

  const v1::StartUploadRequest request_;
  const std::string staging_dir_;
  const UploadRoom room_;
  absl::Mutex writing_;  // held while the volume is written to: it may hang
  mutable absl::Mutex mu_ ABSL_ACQUIRED_AFTER(writing_);
  std::vector<uint64_t> offsets_ ABSL_GUARDED_BY(mu_);
  bool sealed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace rlhf::coordinator
