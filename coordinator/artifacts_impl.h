// Inside of Artifacts. Shared by artifacts.cc (the registry) and artifact_uploads.cc (what comes into the root).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "artifact/artifact_root.h"
#include "coordinator/artifacts.h"
#include "coordinator/upload_registry.h"

namespace rlhf::coordinator {

class ArtifactsImpl final : public Artifacts {
 public:
  ArtifactsImpl(EventLoop* loop, const ArtifactThreads& threads, StateStore* store, std::string root,
                uint64_t upload_reserve_bytes)
      : loop_(loop),
        small_files_(threads.small_files),
        hashing_(threads.hashing),
        store_(store),
        root_(std::move(root)),
        upload_reserve_bytes_(upload_reserve_bytes) {}

  absl::Status Recover() override;
  absl::StatusOr<v1::Artifact> Resolve(const std::string& reference, const std::string& project) override;
  Finder Locate(const std::string& digest) const override;
  int64_t ContextOf(const std::string& digest) const override;
  void SetHangs(const std::string& why) override;
  std::function<bool()> RootProbe() const override;
  void PublishDirectory(const std::string& staging_dir, const std::string& kind, const std::string& project,
                        const std::string& created_by, Done<v1::Artifact> done) override;
  Staging NewStaging() override;
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
  void SetStep(const std::string& digest, int64_t step, WriteBatch* batch) override;
  void Delete(const v1::DeleteArtifactRequest& request, const Recorder& record,
              Done<v1::DeleteArtifactResponse> done) override;

 private:
  // A key of aliases_.
  static std::string KeyOfAlias(const std::string& project, const std::string& name);
  void Point(const std::string& key, const std::string& digest);
  void Unpoint(const std::string& key);
  const std::set<std::string>& NamesOf(const std::string& digest) const;  // keys of aliases_
  bool Visible(const v1::Artifact& artifact, const std::string& project) const;
  // What the volume said last. Thread-safe.
  class Answers {
   public:
    void Set(const std::string& why) {
      absl::MutexLock lock(&mu_);
      why_ = why;
    }
    absl::Status Check() const;  // Unavailable (STORE_UNAVAILABLE) while it hangs

   private:
    mutable absl::Mutex mu_;
    std::string why_ ABSL_GUARDED_BY(mu_);
  };
  // What was published, and what its config.json says, read where the files are.
  struct Published {
    artifact::Manifest manifest;
    int64_t context = 0;
  };

  // At the start, in the background: those that nobody came back to finish.
  void SweepUploads();
  // At the start, in the background: what ContextOf knows.
  void ReadContexts();
  // Off the loop.
  absl::StatusOr<Published> Publish(const std::string& staging_dir) const;
  Published WithContext(artifact::Manifest manifest) const;
  // Unavailable (STORE_UNAVAILABLE) while the volume hangs, or where too much waits for these threads already.
  absl::Status CheckTakes(const Background& threads) const;
  v1::Artifact View(const v1::Artifact& artifact, const std::string& project) const;
  absl::StatusOr<const v1::Artifact*> FindDigest(const std::string& digest) const;
  // Off the loop: Unavailable (STORE_UNAVAILABLE) where the root holds nothing of what is known, by `there`
  // (RootProbe).
  static absl::Status CheckRoot(const std::string& root, const std::function<bool()>& there);
  // The whole digest, of an artifact that the project sees; what begins none as it is.
  absl::StatusOr<std::string> WholeDigest(const std::string& beginning, const std::string& project) const;
  // On the loop again; no session where nothing is to come, or another call's was found.
  void BeginUpload(const v1::StartUploadRequest& request, const Recorder& record,
                   std::shared_ptr<UploadSession> session, v1::StartUploadResponse response,
                   Done<v1::StartUploadResponse> done);
  void AfterPublish(const std::string& upload_id, std::shared_ptr<Upload> upload, const std::string& subject,
                    const Recorder& record, absl::StatusOr<Published> published);
  void Record(const Published& published, const std::string& kind, const std::string& project,
              const std::string& created_by, const std::string& alias, const Recorder& record, Done<v1::Artifact> done);
  // That a name of a project's is about to mean another artifact.
  void RecordAlias(const Recorder& record, const std::string& key, const std::string& digest, WriteBatch* batch) const;
  // Makes the rows durable, then the same true in memory, then answers.
  void Commit(WriteBatch batch, std::function<void()> apply, Done<v1::Artifact> done, const std::string& digest,
              const std::string& project);
  EventLoop* const loop_;
  Background* const small_files_;
  Background* const hashing_;
  StateStore* const store_;
  const artifact::ArtifactRoot root_;
  const uint64_t upload_reserve_bytes_;

  // Outlives this for what is still being looked for.
  const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();

  std::map<std::string, v1::Artifact> artifacts_;                   // by digest
  mutable std::shared_ptr<const std::vector<std::string>> probed_;  // digests; null: artifacts_ has changed
  std::map<std::string, int64_t> contexts_;                         // by digest, of models
  // "project/name" to digest; the name "sha256:…" marks a digest as known to a project. Changed by Point and Unpoint.
  std::map<std::string, std::string> aliases_;
  std::map<std::string, std::set<std::string>> names_;  // aliases_ by digest: keys of it
  UploadRegistry uploads_;
  std::set<std::string> staged_;  // folders that were made for this process; those that are gone leave at a sweep
};

}  // namespace rlhf::coordinator
