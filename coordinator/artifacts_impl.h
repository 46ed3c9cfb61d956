// Inside of Artifacts. Shared by artifacts.cc (the registry) and artifact_uploads.cc (what comes into the root).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "artifact/artifact_root.h"
#include "coordinator/artifacts.h"
#include "coordinator/upload_registry.h"

namespace rlhf::coordinator {

class ArtifactsImpl final : public Artifacts {
 public:
  ArtifactsImpl(EventLoop* loop, Background* background, StateStore* store, std::string root,
                uint64_t upload_reserve_bytes)
      : loop_(loop),
        background_(background),
        store_(store),
        root_(std::move(root)),
        upload_reserve_bytes_(upload_reserve_bytes) {}

  absl::Status Recover() override;
  absl::StatusOr<v1::Artifact> Resolve(const std::string& reference, const std::string& project) override;
  absl::StatusOr<std::string> Path(const std::string& digest) const override;
  std::function<bool()> RootProbe() const override;
  void PublishDirectory(const std::string& staging_dir, const std::string& kind, const std::string& project,
                        const std::string& created_by, Done<v1::Artifact> done) override;
  absl::StatusOr<std::string> MakeStaging() override;
  void SweepStaging() override;
  void StartUpload(const v1::StartUploadRequest& request, const Recorder& record,
                   Done<v1::StartUploadResponse> done) override;
  absl::Status WriteChunk(const v1::UploadChunk& chunk) override;
  std::string ProjectOfUpload(const std::string& upload_id) const override;
  void FinishUpload(const std::string& subject, const v1::FinishUploadRequest& request, const Recorder& record,
                    Done<v1::Artifact> done) override;
  void Register(const v1::RegisterArtifactRequest& request, Done<v1::Artifact> done) override;
  absl::StatusOr<v1::ListArtifactsResponse> List(const v1::ListArtifactsRequest& request) override;
  void SetAlias(const v1::SetAliasRequest& request, const Recorder& record, Done<v1::Artifact> done) override;
  void Pin(const v1::PinArtifactRequest& request, const Recorder& record, Done<v1::Artifact> done) override;
  void Delete(const v1::DeleteArtifactRequest& request, const Recorder& record,
              Done<v1::DeleteArtifactResponse> done) override;

 private:
  // A key of aliases_.
  static std::string KeyOfAlias(const std::string& project, const std::string& name);
  bool Visible(const v1::Artifact& artifact, const std::string& project) const;
  // At the start, when no upload goes on yet: those that nobody came back to finish.
  void SweepUploads();
  v1::Artifact View(const v1::Artifact& artifact, const std::string& project) const;
  absl::StatusOr<const v1::Artifact*> FindDigest(const std::string& digest) const;
  // Unavailable (STORE_UNAVAILABLE) where the root holds nothing of what is known.
  absl::Status CheckRoot() const;
  // The whole digest, of an artifact that the project sees; what begins none as it is.
  absl::StatusOr<std::string> WholeDigest(const std::string& beginning, const std::string& project) const;
  void AfterPublish(const std::string& upload_id, std::shared_ptr<Upload> upload, const std::string& subject,
                    const Recorder& record, absl::StatusOr<artifact::Manifest> manifest);
  void Record(const artifact::Manifest& manifest, const std::string& kind, const std::string& project,
              const std::string& created_by, const std::string& alias, const Recorder& record, Done<v1::Artifact> done);
  // That a name of a project's is about to mean another artifact.
  void RecordAlias(const Recorder& record, const std::string& key, const std::string& digest, WriteBatch* batch) const;
  // Makes the rows durable, then the same true in memory, then answers.
  void Commit(WriteBatch batch, std::function<void()> apply, Done<v1::Artifact> done, const std::string& digest,
              const std::string& project);
  EventLoop* const loop_;
  Background* const background_;
  StateStore* const store_;
  const artifact::ArtifactRoot root_;
  const uint64_t upload_reserve_bytes_;

  std::map<std::string, v1::Artifact> artifacts_;  // by digest
  std::map<std::string, std::string>
      aliases_;  // "project/name" to digest; the name "sha256:…" marks a digest as known to a project
  UploadRegistry uploads_;
  std::set<std::string> staged_;  // folders that were made for this process; those that are gone leave at a sweep
};

}  // namespace rlhf::coordinator
