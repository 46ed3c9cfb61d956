#include "rlhf/v1/artifact_service.grpc.pb.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/grpc_adapter/call_token.h"
#include "coordinator/grpc_adapter/services.h"
#include "coordinator/grpc_adapter/unary.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

constexpr size_t kChunkBytes = 1 << 20;
constexpr size_t kMaxChunkBytes = 4 << 20;

// Reads one file and writes it in chunks. There is one step at a time (a read on a background thread, or a write), each
// started by the one before, so nothing here is shared between threads.
class DownloadStream final : public grpc::ServerWriteReactor<v1::DownloadChunk> {
 public:
  DownloadStream(const Edge& edge, const grpc::CallbackServerContext& context, v1::DownloadRequest request)
      : edge_(edge), caller_(CallerOf(context)), token_(edge, context), request_(std::move(request)) {
    edge_.loop->Post([this] { Resolve(); });
  }
  ~DownloadStream() override {
    if (fd_ >= 0) close(fd_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client went away"));
    Read();
  }
  void OnDone() override { delete this; }

 private:
  void Resolve() {
    const absl::Status status = [this]() -> absl::Status {
      const std::string project = caller_.project == "*" ? "" : caller_.project;
      RLHF_ASSIGN_OR_RETURN(const v1::Artifact artifact, edge_.artifacts->Resolve(request_.digest(), project));
      const auto file = std::find_if(artifact.files().begin(), artifact.files().end(),
                                     [this](const v1::FileEntry& entry) { return entry.path() == request_.path(); });
      if (file == artifact.files().end()) {
        return absl::NotFoundError(
            absl::StrCat("the artifact ", artifact.digest(), " has no file \"", request_.path(), "\""));
      }
      if (request_.offset() > file->size()) {
        return absl::OutOfRangeError(
            absl::StrCat("offset ", request_.offset(), " is beyond the file's ", file->size(), " bytes"));
      }
      find_ = edge_.artifacts->Locate(artifact.digest());
      path_ = file->path();
      offset_ = request_.offset();
      end_ = file->size();
      return absl::OkStatus();
    }();
    if (!status.ok()) return Finish(ToGrpc(status));
    Read();
  }

  void Read() {
    if (const absl::Status full = CheckWaiting(*edge_.transfers); !full.ok()) return Finish(ToGrpc(full));
    edge_.transfers->Run([this] { ReadChunk(); });
  }
  absl::Status Open() {
    RLHF_ASSIGN_OR_RETURN(const std::string dir, find_());
    fd_ = open(absl::StrCat(dir, "/", path_).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", request_.path(), " of ", request_.digest()));
  }
  void ReadChunk() {
    absl::Status status = token_.Check();
    if (status.ok() && fd_ < 0) status = Open();
    if (!status.ok()) return Finish(ToGrpc(status));
    if (offset_ == end_) return Finish(grpc::Status::OK);
    std::string* data = chunk_.mutable_data();
    data->resize(static_cast<size_t>(std::min<uint64_t>(kChunkBytes, end_ - offset_)));
    ssize_t n = 0;
    do {
      n = pread(fd_, data->data(), data->size(), static_cast<off_t>(offset_));
    } while (n < 0 && errno == EINTR);
    if (n < 0) return Finish(ToGrpc(absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", request_.path()))));
    if (n == 0)
      return Finish(ToGrpc(absl::DataLossError(absl::StrCat(request_.path(), " is shorter than its manifest says"))));
    data->resize(static_cast<size_t>(n));
    chunk_.set_offset(offset_);
    offset_ += static_cast<uint64_t>(n);
    StartWrite(&chunk_);
  }

  const Edge& edge_;
  const Caller caller_;
  const CallToken token_;
  const v1::DownloadRequest request_;
  Artifacts::Finder find_;
  std::string path_;  // in the artifact
  uint64_t offset_ = 0, end_ = 0;
  int fd_ = -1;
  v1::DownloadChunk chunk_;
};

// Whose id was guessed is as one that nobody has, which is the manager's error to explain.
absl::Status AdmitUpload(const Edge& edge, const Caller& caller, const std::string& upload_id) {
  const std::string project = edge.artifacts->ProjectOfUpload(upload_id);
  if (project.empty() || edge.Admit(caller, project).ok()) return absl::OkStatus();
  return NoOpenUpload(upload_id);
}

// Takes chunks one by one: the next is read when the one before is written, so the client's window is the only queue.
class UploadStream final : public grpc::ServerReadReactor<v1::UploadChunk> {
 public:
  UploadStream(const Edge& edge, const grpc::CallbackServerContext& context, v1::UploadChunksResponse* response)
      : edge_(edge),
        caller_(CallerOf(context)),
        watch_(ReadWatch::Begin(edge, context, [this](const absl::Status& revoked) { Finish(ToGrpc(revoked)); })),
        response_(response) {
    Read();
  }
  void OnReadDone(bool ok) override {
    if (!watch_->Arrived()) return;
    if (!ok) {
      response_->set_received(received_);
      return Finish(grpc::Status::OK);
    }
    if (const absl::Status full = CheckWaiting(*edge_.transfers); !full.ok()) return Finish(ToGrpc(full));
    edge_.transfers->Run([this] { Take(); });
  }
  void OnDone() override { delete this; }

 private:
  void Read() {
    watch_->Read([this] { StartRead(&chunk_); });
  }
  void Take() {
    absl::Status status = watch_->Check();
    if (status.ok() && chunk_.data().size() > kMaxChunkBytes) {
      status = absl::InvalidArgumentError(
          absl::StrCat("data: expected at most ", kMaxChunkBytes, " bytes, found ", chunk_.data().size()));
    }
    if (status.ok() && chunk_.upload_id() != admitted_) {
      status = AdmitUpload(edge_, caller_, chunk_.upload_id());
      if (status.ok()) admitted_ = chunk_.upload_id();
    }
    if (status.ok()) status = edge_.artifacts->WriteChunk(chunk_);
    if (!status.ok()) return Finish(ToGrpc(status));
    received_ += chunk_.data().size();
    Read();
  }

  const Edge& edge_;
  const Caller caller_;
  const std::shared_ptr<ReadWatch> watch_;
  v1::UploadChunksResponse* const response_;
  v1::UploadChunk chunk_;
  std::string admitted_;
  uint64_t received_ = 0;
};

class ArtifactService final : public v1::ArtifactService::CallbackService {
 public:
  explicit ArtifactService(const Edge& edge) : edge_(edge) {}

  grpc::ServerUnaryReactor* StartUpload(grpc::CallbackServerContext* context, const v1::StartUploadRequest* request,
                                        v1::StartUploadResponse* response) override {
    return InProject(context, request, response, [this](const Caller& caller, auto& r, auto done) {
      if (!r.alias().empty()) {
        if (absl::Status status = CheckFreeAlias("alias", r.alias()); !status.ok()) return done(status);
      }
      edge_.artifacts->StartUpload(r, RecorderOf(caller), std::move(done));
    });
  }
  grpc::ServerReadReactor<v1::UploadChunk>* UploadChunks(grpc::CallbackServerContext* context,
                                                         v1::UploadChunksResponse* response) override {
    return new UploadStream(edge_, *context, response);
  }
  grpc::ServerUnaryReactor* FinishUpload(grpc::CallbackServerContext* context, const v1::FinishUploadRequest* request,
                                         v1::Artifact* response) override {
    return OnLoop(edge_, context, request, response,
                  [this](const Caller& caller, v1::FinishUploadRequest& r, Done<v1::Artifact> done) {
                    absl::Status status = AdmitUpload(edge_, caller, r.upload_id());
                    if (!status.ok()) return done(status);
                    edge_.artifacts->FinishUpload(caller.subject, r, RecorderOf(caller), std::move(done));
                  });
  }
  grpc::ServerUnaryReactor* RegisterArtifact(grpc::CallbackServerContext* context,
                                             const v1::RegisterArtifactRequest* request,
                                             v1::Artifact* response) override {
    return InProject(context, request, response,
                     [this](const Caller&, auto& r, auto done) { edge_.artifacts->Register(r, std::move(done)); });
  }
  grpc::ServerUnaryReactor* GetArtifact(grpc::CallbackServerContext* context, const v1::GetArtifactRequest* request,
                                        v1::Artifact* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller, v1::GetArtifactRequest& r) -> absl::StatusOr<v1::Artifact> {
                    const std::string project = LookupProject(caller, r.reference(), r.project());
                    RLHF_RETURN_IF_ERROR(project.empty() ? absl::OkStatus() : edge_.Admit(caller, project));
                    return edge_.artifacts->Resolve(r.reference(), project);
                  }));
  }
  grpc::ServerUnaryReactor* ListArtifacts(grpc::CallbackServerContext* context, const v1::ListArtifactsRequest* request,
                                          v1::ListArtifactsResponse* response) override {
    return OnLoop(edge_, context, request, response,
                  Directly([this](const Caller& caller,
                                  v1::ListArtifactsRequest& r) -> absl::StatusOr<v1::ListArtifactsResponse> {
                    RLHF_RETURN_IF_ERROR(PageSize(r.page()).status());
                    if (r.project().empty() && caller.project != "*") r.set_project(caller.project);
                    if (!r.project().empty()) {
                      RLHF_RETURN_IF_ERROR(edge_.Admit(caller, r.project()));
                    }
                    return edge_.artifacts->List(r);
                  }));
  }
  grpc::ServerWriteReactor<v1::DownloadChunk>* Download(grpc::CallbackServerContext* context,
                                                        const v1::DownloadRequest* request) override {
    return new DownloadStream(edge_, *context, *request);
  }
  grpc::ServerUnaryReactor* SetAlias(grpc::CallbackServerContext* context, const v1::SetAliasRequest* request,
                                     v1::Artifact* response) override {
    return InProject(context, request, response, [this](const Caller& caller, auto& r, auto done) {
      // The caller must be able to see what the alias is to name; removing one needs no more than its project.
      const std::string visible_to = caller.project == "*" ? "" : r.project();
      if (absl::Status status = CheckFreeAlias("alias", r.alias()); !status.ok()) return done(status);
      if (!r.remove()) {
        absl::StatusOr<v1::Artifact> artifact = edge_.artifacts->Resolve(r.digest(), visible_to);
        if (!artifact.ok()) return done(artifact.status());
        r.set_digest(artifact->digest());
      }
      edge_.artifacts->SetAlias(r, RecorderOf(caller), std::move(done));
    });
  }
  grpc::ServerUnaryReactor* PinArtifact(grpc::CallbackServerContext* context, const v1::PinArtifactRequest* request,
                                        v1::Artifact* response) override {
    return OwnArtifact(context, request, response, [this](const Caller& caller, auto& r, auto done) {
      edge_.artifacts->Pin(r, RecorderOf(caller), std::move(done));
    });
  }
  grpc::ServerUnaryReactor* DeleteArtifact(grpc::CallbackServerContext* context,
                                           const v1::DeleteArtifactRequest* request,
                                           v1::DeleteArtifactResponse* response) override {
    return OwnArtifact(context, request, response, [this](const Caller& caller, auto& r, auto done) {
      if (absl::Status status = edge_.jobs->CheckUnused(r.digest(), Edge::SeenBy(caller)); !status.ok())
        return done(status);
      edge_.artifacts->Delete(r, RecorderOf(caller), std::move(done));
    });
  }

 private:
  // What people do to names and to what is there is on record with its rows. The fleet's uploads are their jobs'.
  Artifacts::Recorder RecorderOf(const Caller& caller) const {
    if (!caller.role.empty()) return nullptr;
    return [oversight = edge_.oversight, subject = caller.subject](
               const std::string& action, const std::string& object, const std::map<std::string, std::string>& details,
               WriteBatch* batch) { oversight->Audit(subject, action, object, "done", details, batch); };
  }

  // Empty: look everywhere. Aliases always belong to a project; the fleet and callers of all projects see every digest.
  static std::string LookupProject(const Caller& caller, const std::string& reference, const std::string& requested) {
    const bool sees_all = !caller.role.empty() || caller.project == "*";
    if (requested.empty() && sees_all && absl::StartsWith(reference, "sha256:")) return "";
    return Edge::ProjectFor(caller, requested);
  }

  template <typename Request, typename Response, typename Call>
  grpc::ServerUnaryReactor* InProject(grpc::CallbackServerContext* context, const Request* request, Response* response,
                                      Call call) {
    return OnLoop(edge_, context, request, response,
                  [this, call = std::move(call)](const Caller& caller, Request& r, Done<Response> done) mutable {
                    r.set_project(Edge::ProjectFor(caller, r.project()));
                    if (absl::Status status = edge_.Admit(caller, r.project()); !status.ok()) return done(status);
                    call(caller, r, std::move(done));
                  });
  }

  // Pinning and deleting change the artifact for everybody: only its own project may.
  template <typename Request, typename Response, typename Call>
  grpc::ServerUnaryReactor* OwnArtifact(grpc::CallbackServerContext* context, const Request* request,
                                        Response* response, Call call) {
    return OnLoop(edge_, context, request, response,
                  [this, call = std::move(call)](const Caller& caller, Request& r, Done<Response> done) mutable {
                    const std::string visible_to = caller.project == "*" ? "" : caller.project;
                    absl::StatusOr<v1::Artifact> artifact = edge_.artifacts->Resolve(r.digest(), visible_to);
                    if (!artifact.ok()) {
                      // Another project's is answered like one that is not there, and noted like every call that
                      // reached for it.
                      const bool named = absl::StartsWith(r.digest(), "sha256:");
                      const absl::StatusOr<v1::Artifact> theirs =
                          named ? edge_.artifacts->Resolve(r.digest(), "") : artifact;
                      if (theirs.ok()) (void)edge_.Admit(caller, theirs->project());
                      return done(artifact.status());
                    }
                    if (absl::Status status = edge_.Admit(caller, artifact->project()); !status.ok())
                      return done(status);
                    r.set_digest(artifact->digest());
                    call(caller, r, std::move(done));
                  });
  }

  const Edge& edge_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeArtifactService(const Edge& edge) {
  return std::make_unique<ArtifactService>(edge);
}

}  // namespace rlhf::coordinator
