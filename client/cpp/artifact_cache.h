// Artifacts for roles and clients: from the shared artifact root when mounted, else downloaded by digest into a private
// root and verified. Thread-safe; concurrent fetches of one digest share a download.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/statusor.h"
#include "artifact/artifact_root.h"
#include "rlhf/v1/data.pb.h"

namespace rlhf::client {

class ArtifactCache {
 public:
  // shared_root may be empty (not mounted); private_root receives downloads; channel leads to an ArtifactService and
  // may be null.
  ArtifactCache(std::string shared_root, std::string private_root, std::shared_ptr<grpc::Channel> channel);
  ~ArtifactCache();
  // A local directory with the artifact's files.
  absl::StatusOr<std::string> Fetch(const std::string& digest);
  // Reads every byte of it: DataLoss (reason DIGEST_MISMATCH) naming what is damaged. A damaged private copy is fetched
  // anew first.
  absl::Status Verify(const std::string& digest);
  // Publishes a directory or file: into the shared root when mounted (then RegisterArtifact), else by upload, and also
  // where the coordinator does not find it in its root, for that is another folder. Returns the digest. A volume that
  // is full (ResourceExhausted) or read-only (FailedPrecondition) has the reason STORE_UNAVAILABLE.
  absl::StatusOr<std::string> Publish(const std::string& path, const std::string& kind, const std::string& project,
                                      const std::string& created_by);

 private:
  absl::StatusOr<std::string> Upload(const std::string& path, const std::string& kind, const std::string& project);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Uploads a file or directory through ArtifactService, resumable and verified; sets the alias when not empty.
absl::StatusOr<v1::Artifact> UploadArtifact(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                                            const std::string& kind, const std::string& project,
                                            const std::string& alias,
                                            artifact::Origin origin = artifact::Origin::kService);

}  // namespace rlhf::client
