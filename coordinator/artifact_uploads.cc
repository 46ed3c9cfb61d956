// What comes into the artifact root: uploads in chunks, and folders that the coordinator made itself.
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"
#include "coordinator/artifacts_impl.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kUploadAbandonedAfter = absl::Hours(24 * 7);
constexpr absl::Duration kAbandonedAfter = absl::Hours(24);
constexpr char kUpload[] = "upload-";

bool IsUpload(const std::string& staging_name) {
  return absl::StartsWith(staging_name, kUpload);
}

}  // namespace

absl::Status NoOpenUpload(const std::string& upload_id) {
  return absl::NotFoundError(
      absl::StrCat("no upload \"", upload_id.substr(0, 64), "\" is open; start it again, nothing is lost"));
}

Artifacts::Staging ArtifactsImpl::NewStaging() {
  Staging staging;
  staging.path = root_.NewStagingPath();
  staged_.insert(staging.path);
  staging.make = [root = root_.root(), path = staging.path, answers = answers_, there = RootProbe()] {
    absl::Status status = answers->Check();
    if (status.ok()) status = CheckRoot(root, there);
    return status.ok() ? WithVolumeReason(MakeDirs(path, kGroupFolder)) : status;
  };
  return staging;
}

void ArtifactsImpl::SweepStaging() {
  hashing_->Run([this, staged = staged_] {
    std::set<std::string> own;
    std::vector<std::string> gone;
    for (const std::string& folder : staged) {
      std::error_code error;
      if (fs::exists(folder, error) || error) {
        own.insert(fs::path(folder).filename().string());
      } else {
        gone.push_back(folder);
      }
    }
    const int removed = root_.SweepStaging(
        kAbandonedAfter, [&own](const std::string& name) { return IsUpload(name) || own.count(name) > 0; });
    if (removed > 0) spdlog::info("removed {} staging folders of {}: who made them is gone", removed, root_.root());
    loop_->Post([this, gone = std::move(gone)] {
      for (const std::string& folder : gone) staged_.erase(folder);
    });
  });
}

void ArtifactsImpl::SweepUploads() {
  hashing_->Run([this] {
    root_.SweepStaging(kUploadAbandonedAfter, [this](const std::string& name) {
      return !IsUpload(name) || uploads_.Find(name.substr(sizeof(kUpload) - 1)) != nullptr;
    });
  });
}

void ArtifactsImpl::PublishDirectory(const std::string& staging_dir, const std::string& kind,
                                     const std::string& project, const std::string& created_by,
                                     Done<v1::Artifact> done) {
  hashing_->Run([this, staging_dir, kind, project, created_by, done = std::move(done)]() mutable {
    absl::StatusOr<Published> published = Publish(staging_dir);
    loop_->Post([this, kind, project, created_by, published = std::move(published), done = std::move(done)]() mutable {
      if (!published.ok()) return done(published.status());
      Record(*published, kind, project.empty() ? "default" : project, created_by, "", nullptr, std::move(done));
    });
  });
}

void ArtifactsImpl::StartUpload(const v1::StartUploadRequest& request, const Recorder& record,
                                Done<v1::StartUploadResponse> done) {
  const auto check = [&]() -> absl::StatusOr<std::string> {
    RLHF_RETURN_IF_ERROR(CheckName("project", request.project()));
    RLHF_RETURN_IF_ERROR(CheckText("kind", request.kind(), 32));
    if (!request.alias().empty()) RLHF_RETURN_IF_ERROR(CheckAlias("alias", request.alias()));
    RLHF_ASSIGN_OR_RETURN(std::string digest, DigestOf(request.files()));
    RLHF_RETURN_IF_ERROR(CheckTakes(*small_files_));
    return digest;
  };
  const absl::StatusOr<std::string> digest = check();
  if (!digest.ok()) return done(digest.status());
  v1::StartUploadResponse response;
  response.set_digest(*digest);
  // The same files in the same project are the same upload, also for another process or after a restart.
  response.set_upload_id(artifact::Sha256Hex(KeyOfAlias(request.project(), *digest)).substr(0, 32));

  const auto known = artifacts_.find(*digest);
  const bool visible = known != artifacts_.end() && Visible(known->second, request.project());
  const std::string staging = absl::StrCat(root_.root(), "/.staging/", kUpload, response.upload_id());
  // What was there begins a root anew. Anything else would only make it look as if it were there.
  small_files_->Run([this, request, record, staging, visible, there = known == artifacts_.end() ? RootProbe() : nullptr,
                     response = std::move(response), done = std::move(done)]() mutable {
    const auto open = [&]() -> absl::StatusOr<std::shared_ptr<UploadSession>> {
      if (there != nullptr) RLHF_RETURN_IF_ERROR(CheckRoot(root_.root(), there));
      if (visible && root_.Has(response.digest())) {
        response.set_complete(true);
        return std::shared_ptr<UploadSession>();
      }
      if (uploads_.Find(response.upload_id()) != nullptr) return std::shared_ptr<UploadSession>();
      return UploadSession::Open(request, staging, {.reserve_bytes = upload_reserve_bytes_});
    };
    loop_->Post(
        [this, request, record, session = open(), response = std::move(response), done = std::move(done)]() mutable {
          if (!session.ok()) return done(session.status());
          BeginUpload(request, record, *std::move(session), std::move(response), std::move(done));
        });
  });
}

void ArtifactsImpl::BeginUpload(const v1::StartUploadRequest& request, const Recorder& record,
                                std::shared_ptr<UploadSession> session, v1::StartUploadResponse response,
                                Done<v1::StartUploadResponse> done) {
  if (response.complete()) {
    for (const v1::FileEntry& file : request.files()) response.add_offsets(file.size());
    if (request.alias().empty()) return done(std::move(response));
    v1::SetAliasRequest alias;
    alias.set_digest(response.digest());
    alias.set_project(request.project());
    alias.set_alias(request.alias());
    return SetAlias(
        alias, record,
        [response = std::move(response), done = std::move(done)](absl::StatusOr<v1::Artifact> artifact) mutable {
          if (!artifact.ok()) return done(artifact.status());
          done(std::move(response));
        });
  }
  std::shared_ptr<Upload> upload = uploads_.Find(response.upload_id());  // another call may have been faster
  if (upload == nullptr) {
    if (session == nullptr) return StartUpload(request, record, std::move(done));  // it ended just now
    upload = std::make_shared<Upload>();
    upload->session = std::move(session);
    upload->digest = response.digest();
    uploads_.Keep(response.upload_id(), upload);
  }
  upload->alias = request.alias();
  for (const uint64_t offset : upload->session->Offsets()) response.add_offsets(offset);
  done(std::move(response));
}

std::string ArtifactsImpl::ProjectOfUpload(const std::string& upload_id) const {
  const std::shared_ptr<Upload> upload = uploads_.Find(upload_id);
  // One that was finished is its project's still: the id can be computed by whoever knows the digest.
  return upload == nullptr ? uploads_.FindFinished(upload_id).project : upload->session->request().project();
}

absl::Status ArtifactsImpl::WriteChunk(const v1::UploadChunk& chunk) {
  const std::shared_ptr<Upload> upload = uploads_.Find(chunk.upload_id());
  if (upload != nullptr) {
    RLHF_RETURN_IF_ERROR(answers_->Check());
    return upload->session->Write(chunk);
  }
  return NoOpenUpload(chunk.upload_id());
}

void ArtifactsImpl::FinishUpload(const std::string& subject, const v1::FinishUploadRequest& request,
                                 const Recorder& record, Done<v1::Artifact> done) {
  const std::string& id = request.upload_id();
  std::shared_ptr<Upload> upload = uploads_.Find(id);
  if (upload == nullptr) {
    const UploadRegistry::Finished finished = uploads_.FindFinished(id);
    if (!finished.digest.empty()) return done(Resolve(finished.digest, finished.project));
    return done(NoOpenUpload(id));
  }
  if (const absl::Status status = CheckTakes(*hashing_); !status.ok()) return done(status);
  upload->finishing.push_back(std::move(done));
  if (upload->finishing.size() > 1) return;
  hashing_->Run([this, id, upload, subject, record] {
    const auto publish = [&]() -> absl::StatusOr<Published> {
      RLHF_RETURN_IF_ERROR(upload->session->Verify());
      return Publish(upload->session->staging_dir());
    };
    absl::StatusOr<Published> published = publish();
    loop_->Post([this, id, upload, subject, record, published = std::move(published)]() mutable {
      AfterPublish(id, std::move(upload), subject, record, std::move(published));
    });
  });
}

void ArtifactsImpl::AfterPublish(const std::string& upload_id, std::shared_ptr<Upload> upload,
                                 const std::string& subject, const Recorder& record,
                                 absl::StatusOr<Published> published) {
  if (published.ok() && published->manifest.digest != upload->digest) {
    published = WithReason(absl::DataLossError(absl::StrCat("expected the artifact ", upload->digest,
                                                            ", the uploaded files make ", published->manifest.digest)),
                           v1::DIGEST_MISMATCH);
  }
  const auto answer = [](Upload& of, const absl::StatusOr<v1::Artifact>& result) {
    for (Done<v1::Artifact>& done : std::exchange(of.finishing, {})) done(result);
  };
  if (!published.ok()) {
    // Missing or wrong bytes can still be sent; after any other failure the upload is found again from what is on disk.
    const bool can_be_sent = absl::IsFailedPrecondition(published.status()) || absl::IsDataLoss(published.status());
    if (!can_be_sent || ReasonOf(published.status()) == v1::STORE_UNAVAILABLE) uploads_.Drop(upload_id);
    return answer(*upload, published.status());
  }
  const v1::StartUploadRequest& request = upload->session->request();
  Record(*published, request.kind(), request.project(), subject, upload->alias, record,
         [this, upload_id, upload, answer](absl::StatusOr<v1::Artifact> result) {
           if (result.ok()) uploads_.MarkFinished(upload_id, {result->digest(), upload->session->request().project()});
           uploads_.Drop(upload_id);
           answer(*upload, result);
         });
}

}  // namespace rlhf::coordinator
