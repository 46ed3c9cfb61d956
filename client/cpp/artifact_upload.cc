#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "artifact/manifest_entries.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "client/cpp/transfer.h"
#include "common/status_util.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"

namespace rlhf::client {
namespace {

// Finishing hashes every byte on the other side.
constexpr absl::Duration kFinishTimeout = absl::Minutes(30);
constexpr size_t kChunkBytes = 1 << 20;

std::string NewRequestId() {
  absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16),
                      absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

class Upload {
 public:
  Upload(const std::shared_ptr<grpc::Channel>& channel, std::string path, const artifact::Manifest& manifest)
      : stub_(v1::ArtifactService::NewStub(channel)), path_(std::move(path)), manifest_(manifest) {}

  absl::StatusOr<v1::Artifact> Run(v1::StartUploadRequest request) {
    for (int failures = 0;;) {
      // A fresh id each time: the same one would bring the answer of the first start, with its old offsets.
      request.set_request_id(NewRequestId());
      v1::StartUploadResponse started;
      const auto context = MakeContext(kTransferCallTimeout);
      absl::Status status = FromGrpc(stub_->StartUpload(context.get(), request, &started));
      if (status.ok()) {
        RLHF_RETURN_IF_ERROR(CheckStarted(started));
        if (started.complete()) return Describe(started.digest(), request.project());
        const uint64_t present = BytesPresent(started);
        if (present > most_present_) failures = 0;
        most_present_ = std::max(most_present_, present);
        status = SendMissing(started);
        if (status.ok()) {
          absl::StatusOr<v1::Artifact> finished = Finish(started.upload_id());
          if (finished.ok()) return finished;
          status = finished.status();
        }
      }
      if (!MayRetry(status) || ++failures == kAttemptsWithoutProgress) {
        return Annotate(status, absl::StrCat("upload of ", path_));
      }
      absl::SleepFor(kRetryPause);
    }
  }

 private:
  absl::Status CheckStarted(const v1::StartUploadResponse& started) const {
    if (started.digest() != manifest_.digest) {
      return absl::InternalError(
          absl::StrCat("the service calls the upload ", started.digest(), ", expected ", manifest_.digest));
    }
    if (!started.complete() && started.offsets_size() != static_cast<int>(manifest_.files.size())) {
      return absl::InternalError(
          absl::StrCat("the service gave ", started.offsets_size(), " offsets for ", manifest_.files.size(), " files"));
    }
    return absl::OkStatus();
  }

  static uint64_t BytesPresent(const v1::StartUploadResponse& started) {
    uint64_t sum = 0;
    for (const uint64_t offset : started.offsets()) sum += offset;
    return sum;
  }

  absl::Status SendMissing(const v1::StartUploadResponse& started) {
    const auto context = MakeContext(kStreamTimeout);
    v1::UploadChunksResponse response;
    const auto writer = stub_->UploadChunks(context.get(), &response);
    absl::Status local;
    for (size_t i = 0; i < manifest_.files.size() && local.ok(); ++i) {
      local = SendFile(started.upload_id(), i, started.offsets(static_cast<int>(i)), writer.get());
    }
    // A write that fails means that the stream ended; Finish knows why.
    if (absl::IsAborted(local)) return FromGrpc(writer->Finish());
    if (!local.ok()) {
      context->TryCancel();
      writer->Finish();
      return local;
    }
    writer->WritesDone();
    return FromGrpc(writer->Finish());
  }

  absl::Status SendFile(const std::string& upload_id, size_t index, uint64_t offset,
                        grpc::ClientWriter<v1::UploadChunk>* writer) const {
    const artifact::FileEntry& file = manifest_.files[index];
    const std::string source = std::filesystem::is_directory(path_) ? absl::StrCat(path_, "/", file.path) : path_;
    std::ifstream in(source, std::ios::binary);
    in.seekg(static_cast<std::streamoff>(offset));
    if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", source));
    v1::UploadChunk chunk;
    chunk.set_upload_id(upload_id);
    chunk.set_file(static_cast<uint32_t>(index));
    while (offset < file.size) {
      chunk.set_offset(offset);
      std::string& data = *chunk.mutable_data();
      data.resize(std::min<uint64_t>(kChunkBytes, file.size - offset));
      if (!in.read(data.data(), static_cast<std::streamsize>(data.size()))) {
        return absl::FailedPreconditionError(absl::StrCat(source, " became shorter while it was uploaded"));
      }
      if (!writer->Write(chunk)) return absl::AbortedError("the stream ended");
      offset += data.size();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<v1::Artifact> Finish(const std::string& upload_id) {
    v1::FinishUploadRequest request;
    request.set_upload_id(upload_id);
    v1::Artifact result;
    const auto context = MakeContext(kFinishTimeout);
    RLHF_RETURN_IF_ERROR(FromGrpc(stub_->FinishUpload(context.get(), request, &result)));
    return result;
  }

  absl::StatusOr<v1::Artifact> Describe(const std::string& digest, const std::string& project) {
    v1::GetArtifactRequest request;
    request.set_reference(digest);
    request.set_project(project);
    v1::Artifact result;
    const auto context = MakeContext(kTransferCallTimeout);
    RLHF_RETURN_IF_ERROR(FromGrpc(stub_->GetArtifact(context.get(), request, &result)));
    return result;
  }

  const std::unique_ptr<v1::ArtifactService::Stub> stub_;
  const std::string path_;
  const artifact::Manifest manifest_;
  uint64_t most_present_ = 0;
};

}  // namespace

absl::StatusOr<v1::Artifact> UploadArtifact(const std::shared_ptr<grpc::Channel>& channel, const std::string& path,
                                            const std::string& kind, const std::string& project,
                                            const std::string& alias, artifact::Origin origin) {
  RLHF_ASSIGN_OR_RETURN(const artifact::Manifest manifest, artifact::ComputeManifest(path, origin));
  v1::StartUploadRequest request;
  request.set_project(project);
  request.set_kind(kind);
  request.set_alias(alias);
  *request.mutable_files() = artifact::EntriesOf(manifest);
  return Upload(channel, path, manifest).Run(std::move(request));
}

}  // namespace rlhf::client
