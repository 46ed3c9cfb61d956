// Which artifacts there are, under which names, and who sees them.
#include "coordinator/artifacts.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/manifest_entries.h"
#include "artifact/model_config.h"
#include "common/spec_loader.h"
#include "common/status_util.h"
#include "coordinator/artifacts_impl.h"
#include "coordinator/names.h"
#include "coordinator/page_limit.h"

namespace rlhf::coordinator {
namespace {

constexpr int kDefaultPage = 100;
constexpr size_t kMostWaiting = 1000;
constexpr size_t kProbed = 1000;  // artifacts; the first that is there is enough

bool NewerFirst(const v1::Artifact* a, const v1::Artifact* b) {
  if (a->created_at().seconds() != b->created_at().seconds())
    return a->created_at().seconds() > b->created_at().seconds();
  if (a->created_at().nanos() != b->created_at().nanos()) return a->created_at().nanos() > b->created_at().nanos();
  return a->digest() < b->digest();
}

// Off the loop. 0: no model.
int64_t ContextIn(const std::string& dir) {
  const absl::StatusOr<artifact::ModelConfig> config = artifact::LoadModelConfig(dir);
  return config.ok() ? config->max_position_embeddings : 0;
}

bool IsModel(const google::protobuf::RepeatedPtrField<v1::FileEntry>& files) {
  return std::any_of(files.begin(), files.end(),
                     [](const v1::FileEntry& file) { return file.path() == "config.json"; });
}

}  // namespace

absl::Status CheckWaiting(const Background& threads) {
  if (threads.waiting() < kMostWaiting) return absl::OkStatus();
  return WithReason(
      absl::UnavailableError(absl::StrCat(kMostWaiting, " calls wait for the artifacts' volume already; try again")),
      v1::STORE_UNAVAILABLE);
}

std::unique_ptr<Artifacts> MakeArtifacts(EventLoop* loop, const ArtifactThreads& threads, StateStore* store,
                                         std::string artifact_root, uint64_t upload_reserve_bytes) {
  return std::make_unique<ArtifactsImpl>(loop, threads, store, std::move(artifact_root), upload_reserve_bytes);
}

std::string ArtifactsImpl::KeyOfAlias(const std::string& project, const std::string& name) {
  return absl::StrCat(project, "/", name);
}

void ArtifactsImpl::Point(const std::string& key, const std::string& digest) {
  Unpoint(key);
  aliases_[key] = digest;
  names_[digest].insert(key);
}

void ArtifactsImpl::Unpoint(const std::string& key) {
  const auto alias = aliases_.find(key);
  if (alias == aliases_.end()) return;
  const auto names = names_.find(alias->second);
  names->second.erase(key);
  if (names->second.empty()) names_.erase(names);
  aliases_.erase(alias);
}

const std::set<std::string>& ArtifactsImpl::NamesOf(const std::string& digest) const {
  static const auto* const kNone = new std::set<std::string>();
  const auto names = names_.find(digest);
  return names == names_.end() ? *kNone : names->second;
}

absl::Status ArtifactsImpl::Recover() {
  absl::Status bad;
  RLHF_RETURN_IF_ERROR(store_->Scan(Table::kArtifacts, "", [&](absl::string_view key, absl::string_view value) {
    v1::Artifact row;
    if (!row.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
      bad = absl::DataLossError(absl::StrCat("the artifact row \"", key, "\" cannot be read; restore a backup"));
      return false;
    }
    artifacts_[std::string(key)] = std::move(row);
    return true;
  }));
  RLHF_RETURN_IF_ERROR(bad);
  RLHF_RETURN_IF_ERROR(store_->Scan(Table::kAliases, "", [&](absl::string_view key, absl::string_view value) {
    v1::Alias row;
    if (!row.ParseFromArray(value.data(), static_cast<int>(value.size()))) {
      bad = absl::DataLossError(absl::StrCat("the alias row \"", key, "\" cannot be read; restore a backup"));
      return false;
    }
    Point(std::string(key), row.digest());
    return true;
  }));
  RLHF_RETURN_IF_ERROR(bad);
  SweepUploads();
  ReadContexts();
  return absl::OkStatus();
}

void ArtifactsImpl::ReadContexts() {
  std::vector<std::pair<std::string, Finder>> models;
  for (const auto& [digest, artifact] : artifacts_)
    if (IsModel(artifact.files())) models.emplace_back(digest, Locate(digest));
  if (models.empty()) return;
  hashing_->Run([this, models = std::move(models)] {
    std::map<std::string, int64_t> found;
    for (const auto& [digest, find] : models)
      if (const absl::StatusOr<std::string> dir = find(); dir.ok()) found[digest] = ContextIn(*dir);
    loop_->Post([this, found = std::move(found)]() mutable { contexts_.merge(found); });
  });
}

int64_t ArtifactsImpl::ContextOf(const std::string& digest) const {
  const auto known = contexts_.find(digest);
  return known == contexts_.end() ? 0 : known->second;
}

void ArtifactsImpl::SetHangs(const std::string& why) {
  answers_->Set(why);
}

absl::Status ArtifactsImpl::Answers::Check() const {
  absl::MutexLock lock(&mu_);
  if (why_.empty()) return absl::OkStatus();
  return WithReason(WithRetryDelay(absl::UnavailableError(why_), absl::Seconds(2)), v1::STORE_UNAVAILABLE);
}

absl::Status ArtifactsImpl::CheckTakes(const Background& threads) const {
  RLHF_RETURN_IF_ERROR(answers_->Check());
  return CheckWaiting(threads);
}

bool ArtifactsImpl::Visible(const v1::Artifact& artifact, const std::string& project) const {
  return project.empty() || artifact.project() == project || aliases_.count(KeyOfAlias(project, artifact.digest())) > 0;
}

v1::Artifact ArtifactsImpl::View(const v1::Artifact& artifact, const std::string& project) const {
  v1::Artifact view = artifact;
  view.clear_aliases();
  const std::string prefix = KeyOfAlias(project.empty() ? artifact.project() : project, "");
  const std::set<std::string>& names = NamesOf(artifact.digest());
  for (auto key = names.lower_bound(prefix); key != names.end() && absl::StartsWith(*key, prefix); ++key) {
    const std::string name = key->substr(prefix.size());
    if (name != artifact.digest()) view.add_aliases(name);
  }
  return view;
}

absl::StatusOr<const v1::Artifact*> ArtifactsImpl::FindDigest(const std::string& digest) const {
  const auto it = artifacts_.find(digest);
  if (it != artifacts_.end()) return &it->second;
  return WithReason(absl::NotFoundError(absl::StrCat("no artifact has the digest \"", digest.substr(0, 80),
                                                     "\"; upload or register it")),
                    v1::UNKNOWN_ARTIFACT);
}

absl::StatusOr<std::string> ArtifactsImpl::WholeDigest(const std::string& beginning, const std::string& project) const {
  constexpr size_t kPrefix = sizeof("sha256:") - 1, kDigits = 64, kFewestDigits = 8;
  if (project.empty() || beginning.size() >= kPrefix + kDigits) return beginning;
  std::vector<std::string> found;
  for (auto it = artifacts_.lower_bound(beginning); it != artifacts_.end() && absl::StartsWith(it->first, beginning);
       ++it)
    if (Visible(it->second, project)) found.push_back(it->first);
  if (!found.empty() && beginning.size() < kPrefix + kFewestDigits) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a digest, or at least ", kFewestDigits, " digits of one, found \"", beginning, "\""));
  }
  if (found.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("\"", beginning, "\" begins the digests of ", found.size(),
                                                   " artifacts, ", found[0], " among them: give more of it"));
  }
  return found.empty() ? beginning : found[0];
}

absl::StatusOr<v1::Artifact> ArtifactsImpl::Resolve(const std::string& reference, const std::string& project) {
  std::string digest = reference;
  if (!absl::StartsWith(reference, "sha256:")) {
    const std::string owner = project.empty() ? "default" : project;
    const auto it = aliases_.find(KeyOfAlias(owner, reference));
    if (it == aliases_.end()) {
      const std::string prefix = KeyOfAlias(owner, "");
      std::vector<std::string> names;
      for (auto near = aliases_.lower_bound(prefix); near != aliases_.end() && absl::StartsWith(near->first, prefix);
           ++near) {
        if (!absl::StartsWith(near->first.substr(prefix.size()), "sha256:"))
          names.push_back(near->first.substr(prefix.size()));
      }
      const std::string nearest = NearestName(reference, names);
      return WithReason(
          absl::NotFoundError(absl::StrCat("the project \"", owner, "\" has no artifact with the alias \"",
                                           reference.substr(0, 80), "\"",
                                           nearest.empty() ? "; rlhfctl models list and data list show what there is"
                                                           : absl::StrCat("; the nearest is \"", nearest, "\""))),
          v1::UNKNOWN_ARTIFACT);
    }
    digest = it->second;
  } else {
    RLHF_ASSIGN_OR_RETURN(digest, WholeDigest(reference, project));
  }
  const absl::StatusOr<const v1::Artifact*> artifact = FindDigest(digest);
  if (project.empty()) {
    RLHF_RETURN_IF_ERROR(artifact.status());
  } else if (!artifact.ok() || !Visible(**artifact, project)) {
    // What another project has is not even said to exist: this is what one says of a digest that nobody has.
    return WithReason(absl::NotFoundError(absl::StrCat("the project \"", project, "\" has no artifact \"",
                                                       digest.substr(0, 80), "\"; upload it there")),
                      v1::UNKNOWN_ARTIFACT);
  }
  return View(**artifact, project);
}

Artifacts::Finder ArtifactsImpl::Locate(const std::string& digest) const {
  const bool known = artifacts_.count(digest) > 0;
  return [root = root_, answers = answers_, digest,
          there = known ? RootProbe() : nullptr]() -> absl::StatusOr<std::string> {
    RLHF_RETURN_IF_ERROR(answers->Check());
    absl::StatusOr<std::string> path = root.Path(digest);
    if (absl::IsNotFound(path.status()) && there != nullptr)
      RLHF_RETURN_IF_ERROR(Annotate(CheckRoot(root.root(), there), digest));
    return path;
  };
}

absl::Status ArtifactsImpl::CheckRoot(const std::string& root, const std::function<bool()>& there) {
  if (there()) return absl::OkStatus();
  return WithReason(
      absl::UnavailableError(absl::StrCat(root, " holds none of the artifacts that are known: is its volume mounted?")),
      v1::STORE_UNAVAILABLE);
}

std::function<bool()> ArtifactsImpl::RootProbe() const {
  if (probed_ == nullptr) {
    auto digests = std::make_shared<std::vector<std::string>>();
    for (auto it = artifacts_.begin(); it != artifacts_.end() && digests->size() < kProbed; ++it)
      digests->push_back(it->first);
    probed_ = std::move(digests);
  }
  return [root = root_, digests = probed_] {
    return digests->empty() || std::any_of(digests->begin(), digests->end(),
                                           [&root](const std::string& digest) { return root.Has(digest); });
  };
}

absl::StatusOr<ArtifactsImpl::Published> ArtifactsImpl::Publish(const std::string& staging_dir) const {
  RLHF_RETURN_IF_ERROR(answers_->Check());
  absl::StatusOr<artifact::Manifest> manifest = root_.PublishStaged(staging_dir);
  if (!manifest.ok()) return WithVolumeReason(manifest.status());
  return WithContext(*std::move(manifest));
}

ArtifactsImpl::Published ArtifactsImpl::WithContext(artifact::Manifest manifest) const {
  const absl::StatusOr<std::string> dir = root_.Path(manifest.digest);
  return {std::move(manifest), dir.ok() ? ContextIn(*dir) : 0};
}

void ArtifactsImpl::Commit(WriteBatch batch, std::function<void()> apply, Done<v1::Artifact> done,
                           const std::string& digest, const std::string& project) {
  store_->Commit(std::move(batch), [this, apply = std::move(apply), done = std::move(done), digest,
                                    project](absl::Status status) mutable {
    loop_->Post([this, status, apply = std::move(apply), done = std::move(done), digest, project]() mutable {
      if (!status.ok()) return done(status);
      apply();
      const absl::StatusOr<const v1::Artifact*> artifact = FindDigest(digest);
      if (!artifact.ok()) return done(artifact.status());
      done(View(**artifact, project));
    });
  });
}

void ArtifactsImpl::Record(const Published& published, const std::string& kind, const std::string& project,
                           const std::string& created_by, const std::string& alias, const Recorder& record,
                           Done<v1::Artifact> done) {
  const artifact::Manifest& manifest = published.manifest;
  if (published.context > 0) contexts_[manifest.digest] = published.context;
  v1::Artifact row;
  WriteBatch batch;
  const auto existing = artifacts_.find(manifest.digest);
  if (existing != artifacts_.end()) {
    row = existing->second;
  } else {
    row.set_digest(manifest.digest);
    row.set_kind(kind);
    row.set_project(project);
    row.set_total_size(manifest.total_size);
    *row.mutable_files() = artifact::EntriesOf(manifest);
    row.set_created_by(created_by);
    const int64_t now = absl::ToUnixNanos(loop_->clock().WallNow());
    row.mutable_created_at()->set_seconds(now / 1'000'000'000);
    row.mutable_created_at()->set_nanos(static_cast<int32_t>(now % 1'000'000'000));
    batch.Put(Table::kArtifacts, row.digest(), row.SerializeAsString());
  }
  std::vector<std::string> names;
  if (row.project() != project) names.push_back(KeyOfAlias(project, row.digest()));
  if (!alias.empty()) names.push_back(KeyOfAlias(project, alias));
  v1::Alias value;
  value.set_digest(row.digest());
  for (const std::string& name : names) batch.Put(Table::kAliases, name, value.SerializeAsString());
  const std::string digest = row.digest();
  if (record) record("artifact.upload", digest, {{"kind", row.kind()}, {"project", project}}, &batch);
  if (!alias.empty()) RecordAlias(record, KeyOfAlias(project, alias), digest, &batch);
  Commit(
      std::move(batch),
      [this, row = std::move(row), names] {
        if (artifacts_.try_emplace(row.digest(), row).second) probed_.reset();
        for (const std::string& name : names) Point(name, row.digest());
      },
      std::move(done), digest, project);
}

void ArtifactsImpl::Register(const v1::RegisterArtifactRequest& request, Done<v1::Artifact> done) {
  if (const absl::Status status = CheckTakes(*small_files_); !status.ok()) return done(status);
  small_files_->Run([this, request, there = RootProbe(), done = std::move(done)]() mutable {
    const auto look = [&]() -> absl::StatusOr<Published> {
      absl::StatusOr<artifact::Manifest> manifest = root_.GetManifest(request.digest());
      if (manifest.ok()) return WithContext(*std::move(manifest));
      RLHF_RETURN_IF_ERROR(CheckRoot(root_.root(), there));
      const absl::Status status =
          Annotate(manifest.status(), "the artifact root does not hold what is to be registered");
      return absl::IsNotFound(status) ? WithReason(status, v1::UNKNOWN_ARTIFACT) : status;
    };
    loop_->Post([this, request, published = look(), done = std::move(done)]() mutable {
      if (!published.ok()) return done(published.status());
      Record(*published, request.kind(), request.project().empty() ? "default" : request.project(),
             request.created_by(), "", nullptr, std::move(done));
    });
  });
}

absl::StatusOr<v1::ListArtifactsResponse> ArtifactsImpl::List(const v1::ListArtifactsRequest& request) {
  PageLimit page(request.page().page_size() == 0 ? kDefaultPage : request.page().page_size());
  std::vector<const v1::Artifact*> found;
  for (const auto& [digest, artifact] : artifacts_) {
    if (!Visible(artifact, request.project())) continue;
    if (!request.kind().empty() && artifact.kind() != request.kind()) continue;
    found.push_back(&artifact);
  }
  std::sort(found.begin(), found.end(), NewerFirst);
  auto from = found.begin();
  if (!request.page().page_token().empty()) {
    const auto last = artifacts_.find(request.page().page_token());
    if (last == artifacts_.end() || !Visible(last->second, request.project())) {
      return absl::OutOfRangeError(
          "page_token: the artifact it points behind was deleted; list again from the beginning");
    }
    from = std::upper_bound(found.begin(), found.end(), &last->second, NewerFirst);
  }
  v1::ListArtifactsResponse response;
  for (; from != found.end(); ++from) {
    v1::Artifact view = View(**from, request.project());
    if (!page.Take(view.ByteSizeLong())) {
      response.set_next_page_token(response.artifacts().rbegin()->digest());
      break;
    }
    *response.add_artifacts() = std::move(view);
  }
  return response;
}

void ArtifactsImpl::RecordAlias(const Recorder& record, const std::string& key, const std::string& digest,
                                WriteBatch* batch) const {
  if (!record) return;
  std::map<std::string, std::string> details = {{"artifact", digest}};
  if (const auto before = aliases_.find(key); before != aliases_.end()) details["before"] = before->second;
  record("artifact.alias", key, details, batch);
}

void ArtifactsImpl::SetAlias(const v1::SetAliasRequest& request, const Recorder& record, Done<v1::Artifact> done) {
  absl::Status status = CheckName("project", request.project());
  if (status.ok()) status = CheckAlias("alias", request.alias());
  if (!status.ok()) return done(status);
  const std::string key = KeyOfAlias(request.project(), request.alias());
  WriteBatch batch;
  if (request.remove()) {
    const auto it = aliases_.find(key);
    if (it == aliases_.end()) return done(Resolve(request.alias(), request.project()));  // says what is near
    const std::string digest = it->second;
    batch.Erase(Table::kAliases, key);
    if (record) record("artifact.unalias", key, {{"artifact", digest}}, &batch);
    return Commit(
        std::move(batch), [this, key] { Unpoint(key); }, std::move(done), digest, request.project());
  }
  const absl::StatusOr<const v1::Artifact*> artifact = FindDigest(request.digest());
  if (!artifact.ok()) return done(artifact.status());
  v1::Alias value;
  value.set_digest(request.digest());
  std::vector<std::string> keys = {key};
  if (!Visible(**artifact, request.project())) keys.push_back(KeyOfAlias(request.project(), request.digest()));
  for (const std::string& each : keys) batch.Put(Table::kAliases, each, value.SerializeAsString());
  RecordAlias(record, key, request.digest(), &batch);
  Commit(
      std::move(batch),
      [this, keys, digest = request.digest()] {
        for (const auto& each : keys) Point(each, digest);
      },
      std::move(done), request.digest(), request.project());
}

void ArtifactsImpl::SetStep(const std::string& digest, int64_t step, WriteBatch* batch) {
  const auto found = artifacts_.find(digest);
  if (found == artifacts_.end() || found->second.step() == step) return;
  found->second.set_step(step);
  batch->Put(Table::kArtifacts, digest, found->second.SerializeAsString());
}

void ArtifactsImpl::Pin(const v1::PinArtifactRequest& request, const Recorder& record, Done<v1::Artifact> done) {
  const absl::StatusOr<const v1::Artifact*> artifact = FindDigest(request.digest());
  if (!artifact.ok()) return done(artifact.status());
  v1::Artifact row = **artifact;
  row.set_pinned(request.pinned());
  WriteBatch batch;
  batch.Put(Table::kArtifacts, row.digest(), row.SerializeAsString());
  if (record) record(request.pinned() ? "artifact.pin" : "artifact.unpin", row.digest(), {}, &batch);
  Commit(
      std::move(batch), [this, row] { artifacts_[row.digest()] = row; }, std::move(done), request.digest(),
      row.project());
}

void ArtifactsImpl::Delete(const v1::DeleteArtifactRequest& request, const Recorder& record,
                           Done<v1::DeleteArtifactResponse> done) {
  const std::string& digest = request.digest();
  const absl::StatusOr<const v1::Artifact*> artifact = FindDigest(digest);
  if (!artifact.ok()) return done(artifact.status());
  if ((*artifact)->pinned())
    return done(absl::FailedPreconditionError(absl::StrCat(digest, " is pinned; unpin it first")));
  WriteBatch batch;
  std::vector<std::string> markers;
  for (const std::string& key : NamesOf(digest)) {
    if (!absl::EndsWith(key, absl::StrCat("/", digest))) {
      return done(absl::FailedPreconditionError(absl::StrCat(digest, " has the alias \"", key, "\"; remove it first")));
    }
    markers.push_back(key);
  }
  for (const std::string& key : markers) batch.Erase(Table::kAliases, key);
  batch.Erase(Table::kArtifacts, digest);
  if (record) {
    record("artifact.delete", digest, {{"kind", (*artifact)->kind()}, {"project", (*artifact)->project()}}, &batch);
  }
  // The row first: files without a row are garbage, a row without files would be a lie.
  store_->Commit(std::move(batch), [this, digest, markers, done = std::move(done)](absl::Status status) mutable {
    loop_->Post([this, digest, markers, status, done = std::move(done)]() mutable {
      if (!status.ok()) return done(status);
      artifacts_.erase(digest);
      probed_.reset();
      for (const std::string& key : markers) Unpoint(key);
      contexts_.erase(digest);
      hashing_->Run([this, digest, done = std::move(done)]() mutable {
        if (absl::Status removed = root_.Delete(digest); !removed.ok()) return done(WithVolumeReason(removed));
        done(v1::DeleteArtifactResponse());
      });
    });
  });
}

}  // namespace rlhf::coordinator
