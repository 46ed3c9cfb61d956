#include "client/cpp/artifact_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "client/cpp/transfer.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"
#include "common/stuck_watch.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"

namespace rlhf::client {
namespace {

constexpr absl::Duration kAbandonedAfter = absl::Hours(24);  // a download

// Paths come from the other side: nothing may be written outside the staging directory.
absl::Status CheckRelativePath(const std::string& path) {
  bool valid = !path.empty() && path.find('\0') == std::string::npos;
  for (const absl::string_view part : absl::StrSplit(path, '/'))
    valid = valid && !part.empty() && part != "." && part != "..";
  if (valid) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the artifact's manifest holds the unusable path \"", path, "\""));
}

// Appends one stream's bytes to an open file; `*offset` grows with what was written.
absl::Status ReceiveInto(v1::ArtifactService::Stub* stub, const v1::DownloadRequest& request, uint64_t size, int fd,
                         uint64_t* offset) {
  const auto context = MakeContext(kStreamTimeout);
  const auto reader = stub->Download(context.get(), request);
  v1::DownloadChunk chunk;
  absl::Status status;
  while (status.ok() && reader->Read(&chunk)) {
    StuckWatch::MovedHere();
    if (chunk.offset() != *offset || chunk.data().size() > size - *offset) {
      status = absl::DataLossError(absl::StrCat(request.path(), ": expected bytes from ", *offset, " up to ", size,
                                                ", received ", chunk.data().size(), " from ", chunk.offset()));
      break;
    }
    for (size_t written = 0; written < chunk.data().size();) {
      const ssize_t n = write(fd, chunk.data().data() + written, chunk.data().size() - written);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        status = absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", request.path()));
        break;
      }
      written += static_cast<size_t>(n);
      *offset += static_cast<uint64_t>(n);
    }
  }
  if (!status.ok()) context->TryCancel();
  const absl::Status finished = FromGrpc(reader->Finish());
  return status.ok() ? finished : status;
}

absl::Status DownloadFile(v1::ArtifactService::Stub* stub, const std::string& digest, const v1::FileEntry& file,
                          const std::string& target) {
  const int fd = open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", target));
  const absl::Cleanup close_file = [fd] { close(fd); };
  uint64_t offset = 0;
  for (int failures = 0; offset < file.size();) {
    v1::DownloadRequest request;
    request.set_digest(digest);
    request.set_path(file.path());
    request.set_offset(offset);
    const uint64_t before = offset;
    const absl::Status status = ReceiveInto(stub, request, file.size(), fd, &offset);
    if (offset > before) failures = 0;
    if (!status.ok() && !MayRetry(status)) return Annotate(status, absl::StrCat("download of ", digest));
    if (offset == file.size()) break;
    if (status.ok()) {
      return absl::DataLossError(
          absl::StrCat(file.path(), " of ", digest, " ended after ", offset, " of ", file.size(), " bytes"));
    }
    if (++failures == kAttemptsWithoutProgress) return Annotate(status, absl::StrCat("download of ", digest));
    absl::SleepFor(kRetryPause);
  }
  return absl::OkStatus();
}

}  // namespace

struct ArtifactCache::Impl {
  Impl(std::string shared_root, std::string private_root, std::shared_ptr<grpc::Channel> the_channel)
      : channel(std::move(the_channel)), private_artifacts(std::move(private_root)) {
    if (channel != nullptr) stub = v1::ArtifactService::NewStub(channel);
    // Downloads of processes that were killed.
    private_artifacts.SweepStaging(kAbandonedAfter, [](const std::string&) { return false; });
    if (!shared_root.empty()) shared_artifacts = std::make_unique<artifact::ArtifactRoot>(std::move(shared_root));
  }

  absl::StatusOr<std::string> LocalPath(const std::string& digest) const {
    if (shared_artifacts != nullptr && shared_artifacts->Has(digest)) return shared_artifacts->Path(digest);
    return private_artifacts.Path(digest);
  }

  absl::Status Download(const std::string& digest) {
    if (stub == nullptr) {
      return absl::NotFoundError(absl::StrCat(digest, " is neither in the shared artifact root nor in ",
                                              private_artifacts.root(), ", and there is no service to ask"));
    }
    v1::GetArtifactRequest request;
    request.set_reference(digest);
    v1::Artifact description;
    const auto context = MakeContext(kTransferCallTimeout);
    RLHF_RETURN_IF_ERROR(FromGrpc(stub->GetArtifact(context.get(), request, &description)));
    spdlog::info("downloading {}: {} files, {} bytes", digest, description.files_size(), description.total_size());
    RLHF_ASSIGN_OR_RETURN(const std::string staging, private_artifacts.MakeStaging());
    bool published = false;
    const absl::Cleanup discard = [&] {
      std::error_code ignored;
      if (!published) std::filesystem::remove_all(staging, ignored);
    };
    for (const v1::FileEntry& file : description.files()) {
      RLHF_RETURN_IF_ERROR(CheckRelativePath(file.path()));
      const std::filesystem::path target = std::filesystem::path(staging) / file.path();
      RLHF_RETURN_IF_ERROR(MakeDirs(target.parent_path().string()));
      RLHF_RETURN_IF_ERROR(DownloadFile(stub.get(), digest, file, target.string()));
    }
    // The digest that publishing computes from the bytes on disk is the proof.
    RLHF_RETURN_IF_ERROR(CheckStaged(digest, staging));
    published = true;
    return private_artifacts.PublishStaged(staging).status();
  }

  absl::Status CheckStaged(const std::string& digest, const std::string& staging) const {
    RLHF_ASSIGN_OR_RETURN(const artifact::Manifest manifest, artifact::ComputeManifest(staging));
    if (manifest.digest == digest) return absl::OkStatus();
    return WithReason(absl::DataLossError(absl::StrCat("downloaded ", digest, " but its bytes are ", manifest.digest,
                                                       ": damaged in transit or at its source")),
                      v1::DIGEST_MISMATCH);
  }

  const std::shared_ptr<grpc::Channel> channel;
  const artifact::ArtifactRoot private_artifacts;
  std::unique_ptr<v1::ArtifactService::Stub> stub;
  std::unique_ptr<artifact::ArtifactRoot> shared_artifacts;
  absl::Mutex mu;
  std::set<std::string> downloading ABSL_GUARDED_BY(mu);
};

ArtifactCache::ArtifactCache(std::string shared_root, std::string private_root, std::shared_ptr<grpc::Channel> channel)
    : impl_(std::make_unique<Impl>(std::move(shared_root), std::move(private_root), std::move(channel))) {}

ArtifactCache::~ArtifactCache() = default;

absl::StatusOr<std::string> ArtifactCache::Fetch(const std::string& digest) {
  {
    absl::MutexLock lock(&impl_->mu);
    const auto nobody_downloads = [this, &digest]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(impl_->mu) {
      return !impl_->downloading.contains(digest);
    };
    impl_->mu.Await(absl::Condition(&nobody_downloads));
    absl::StatusOr<std::string> path = impl_->LocalPath(digest);
    if (path.ok() || !absl::IsNotFound(path.status())) return path;
    impl_->downloading.insert(digest);
  }
  const absl::Status status = impl_->Download(digest);
  {
    absl::MutexLock lock(&impl_->mu);
    impl_->downloading.erase(digest);
  }
  if (!status.ok()) return status;
  return impl_->LocalPath(digest);
}

absl::Status ArtifactCache::Verify(const std::string& digest) {
  const auto reasoned = [](const absl::Status& status) {
    return absl::IsDataLoss(status) ? WithReason(status, v1::DIGEST_MISMATCH) : status;
  };
  if (impl_->shared_artifacts != nullptr && impl_->shared_artifacts->Has(digest))
    return reasoned(impl_->shared_artifacts->Verify(digest));
  RLHF_RETURN_IF_ERROR(Fetch(digest).status());
  const absl::Status first = impl_->private_artifacts.Verify(digest);
  if (!absl::IsDataLoss(first)) return first;
  spdlog::warn("{}; fetching it again", std::string(first.message()));
  RLHF_RETURN_IF_ERROR(impl_->private_artifacts.Delete(digest));
  RLHF_RETURN_IF_ERROR(Fetch(digest).status());
  return reasoned(impl_->private_artifacts.Verify(digest));
}

absl::StatusOr<std::string> ArtifactCache::Upload(const std::string& path, const std::string& kind,
                                                  const std::string& project) {
  RLHF_ASSIGN_OR_RETURN(const v1::Artifact uploaded, UploadArtifact(impl_->channel, path, kind, project, /*alias=*/""));
  return uploaded.digest();
}

absl::StatusOr<std::string> ArtifactCache::Publish(const std::string& path, const std::string& kind,
                                                   const std::string& project, const std::string& created_by) {
  if (impl_->shared_artifacts == nullptr) {
    if (impl_->channel == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "cannot publish ", path, ": no shared artifact root is mounted and there is no service to upload to"));
    }
    return Upload(path, kind, project);
  }
  const absl::StatusOr<artifact::Manifest> manifest = impl_->shared_artifacts->Publish(path);
  if (!manifest.ok()) return WithVolumeReason(manifest.status());
  if (impl_->stub != nullptr) {
    v1::RegisterArtifactRequest request;
    request.set_digest(manifest->digest);
    request.set_kind(kind);
    request.set_project(project);
    request.set_created_by(created_by);
    v1::Artifact registered;
    const auto context = MakeContext(kTransferCallTimeout);
    const absl::Status status = FromGrpc(impl_->stub->RegisterArtifact(context.get(), request, &registered));
    if (ReasonOf(status) == v1::UNKNOWN_ARTIFACT) {
      spdlog::warn(
          "the coordinator does not find {} in its artifact root, though it was written to {}: mount the same "
          "volume at both; uploading it meanwhile",
          manifest->digest, impl_->shared_artifacts->root());
      return Upload(path, kind, project);
    }
    RLHF_RETURN_IF_ERROR(status);
  }
  return manifest->digest;
}

}  // namespace rlhf::client
