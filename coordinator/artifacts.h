// The registry of artifacts and aliases, and uploads into the artifact root. Loop thread only, but for the file work it
// runs in the background: the root's volume may hang, and the loop never touches it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "artifact/artifact_root.h"
#include "coordinator/event_loop.h"
#include "coordinator/store/state_store.h"
#include "rlhf/v1/artifact_service.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

// Whose threads touch the artifact root's volume. What hangs in one kind of work holds up no other.
struct ArtifactThreads {
  ArtifactThreads(Background* all) : small_files(all), hashing(all) {}  // NOLINT: implicit
  ArtifactThreads(Background* small_files_of, Background* hashing_of)
      : small_files(small_files_of), hashing(hashing_of) {}
  Background* small_files;  // looks, and what is quickly read
  Background* hashing;      // what may take minutes
};
// Unavailable (STORE_UNAVAILABLE) where so much waits for the threads that nothing more should.
absl::Status CheckWaiting(const Background& threads);

class Artifacts {
 public:
  // Adds the record of what is about to be written to its batch. Of those that take one, empty: nothing is recorded.
  using Recorder = std::function<void(const std::string& action, const std::string& object,
                                      const std::map<std::string, std::string>& details, WriteBatch* batch)>;

  virtual ~Artifacts() = default;
  virtual absl::Status Recover() = 0;
  // "sha256:…" or an alias of the project; with a project also the beginning of a digest, of at least 8 digits, where
  // no other that the project sees begins so (InvalidArgument). NotFound with UNKNOWN_ARTIFACT naming the nearest
  // alias.
  virtual absl::StatusOr<v1::Artifact> Resolve(const std::string& reference, const std::string& project) = 0;
  // Finds the local directory of a published artifact; to be called off the loop, any number of times. Unavailable
  // (STORE_UNAVAILABLE) where the root holds nothing of what is known, or hangs: its volume is not there, and the
  // artifact is not lost.
  using Finder = std::function<absl::StatusOr<std::string>()>;
  virtual Finder Locate(const std::string& digest) const = 0;
  // How many tokens an artifact's model holds; 0 where it is none, or not known (yet). From memory.
  virtual int64_t ContextOf(const std::string& digest) const { return 0; }
  // why not empty: the root's volume does not answer, and whoever would wait for it is told so at once (Unavailable,
  // STORE_UNAVAILABLE), until it is empty again.
  virtual void SetHangs(const std::string& why) {}
  // Tells, on any thread, whether the root holds any of a few artifacts that are known now; true where none is.
  virtual std::function<bool()> RootProbe() const {
    return [] { return true; };
  }
  // Publishes a directory the coordinator itself made (a data artifact), in the background; `done` runs on the loop.
  virtual void PublishDirectory(const std::string& staging_dir, const std::string& kind, const std::string& project,
                                const std::string& created_by, Done<v1::Artifact> done) = 0;
  // A folder to fill and then publish. `make` makes it, off the loop; also Unavailable, as Locate.
  struct Staging {
    std::string path;
    std::function<absl::Status()> make;
  };
  virtual Staging NewStaging() = 0;
  // In the background: removes staging folders in which nothing was written for a day, but this process's own (a model
  // card may wait that long for a full volume) and uploads, which people may go on with.
  virtual void SweepStaging() = 0;
  // `record` is for an alias of what is there already.
  virtual void StartUpload(const v1::StartUploadRequest& request, const Recorder& record,
                           Done<v1::StartUploadResponse> done) = 0;
  // Called off the loop by the adapter, in order for one upload.
  virtual absl::Status WriteChunk(const v1::UploadChunk& chunk) = 0;
  // Of an upload that was started, also once it is finished; empty when unknown. Any thread.
  virtual std::string ProjectOfUpload(const std::string& upload_id) const { return {}; }
  virtual void FinishUpload(const std::string& subject, const v1::FinishUploadRequest& request, const Recorder& record,
                            Done<v1::Artifact> done) = 0;
  virtual void Register(const v1::RegisterArtifactRequest& request, Done<v1::Artifact> done) = 0;
  virtual absl::StatusOr<v1::ListArtifactsResponse> List(const v1::ListArtifactsRequest& request) = 0;
  // Of a checkpoint: the step after which it was made. Adds its row to the batch.
  virtual void SetStep(const std::string& digest, int64_t step, WriteBatch* batch) = 0;
  virtual void SetAlias(const v1::SetAliasRequest& request, const Recorder& record, Done<v1::Artifact> done) = 0;
  virtual void Pin(const v1::PinArtifactRequest& request, const Recorder& record, Done<v1::Artifact> done) = 0;
  virtual void Delete(const v1::DeleteArtifactRequest& request, const Recorder& record,
                      Done<v1::DeleteArtifactResponse> done) = 0;
};
// What is said of an upload that is not open, or not the caller's.
absl::Status NoOpenUpload(const std::string& upload_id);
// Uploads leave `upload_reserve_bytes` free on their volume.
std::unique_ptr<Artifacts> MakeArtifacts(EventLoop* loop, const ArtifactThreads& threads, StateStore* store,
                                         std::string artifact_root, uint64_t upload_reserve_bytes = 0);

}  // namespace rlhf::coordinator
