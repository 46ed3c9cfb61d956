// models, data, checkpoints: list, push, pull, pin, alias, delete.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "artifact/digest.h"
#include "cli/artifact_queries.h"
#include "cli/commands/commands.h"
#include "cli/output.h"
#include "cli/pages.h"
#include "cli/part_file.h"
#include "cli/uploads.h"
#include "client/cpp/artifact_cache.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::cli {
namespace {

struct ArtifactFlags {
  std::string path, alias, reference, out;
  bool unpin = false, overwrite = false;
};

int List(const ConnectionFlags& connection, const std::string& kind) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto stub = v1::ArtifactService::NewStub(*channel);
  v1::ListArtifactsRequest request;
  request.set_kind(kind);
  request.set_project(connection.project);
  const auto artifacts = AllPages<v1::Artifact>(
      *stub, &v1::ArtifactService::Stub::ListArtifacts, request,
      [](const v1::ListArtifactsResponse& page) -> const auto& { return page.artifacts(); });
  if (!artifacts.ok()) return Fail(artifacts.status());
  if (connection.output != "table") {
    PrintMessages(connection.output, *artifacts);
    return v1::EXIT_OK;
  }
  const bool checkpoints = kind == "checkpoint";
  std::vector<std::string> columns = {"DIGEST", "SIZE", "FILES", "PINNED", "ALIASES", "MADE BY"};
  if (checkpoints) columns.push_back("STEP");
  Table table(columns);
  for (const v1::Artifact& artifact : *artifacts) {
    std::string aliases;
    for (const std::string& alias : artifact.aliases()) absl::StrAppend(&aliases, aliases.empty() ? "" : ", ", alias);
    std::vector<std::string> row = {Short(artifact.digest()),
                                    Bytes(artifact.total_size()),
                                    absl::StrCat(artifact.files_size()),
                                    artifact.pinned() ? "yes" : "",
                                    aliases,
                                    artifact.created_by()};
    if (checkpoints) row.push_back(artifact.step() > 0 ? absl::StrCat(artifact.step()) : "");
    table.Row(row);
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

int Push(const ConnectionFlags& connection, const std::string& kind, const ArtifactFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  if (const absl::Status status = CheckReadable(flags.path); !status.ok()) return Fail(status);
  auto artifact =
      client::UploadArtifact(*channel, flags.path, kind, connection.project, flags.alias, artifact::Origin::kUser);
  if (!artifact.ok()) return Fail(artifact.status());
  if (connection.output != "table") {
    PrintMessage(connection.output, *artifact);
  } else {
    std::printf("%s\n", artifact->digest().c_str());
  }
  return v1::EXIT_OK;
}

// Of an artifact's file where it is to lie: whether it is there already. Refuses paths outside the folder, and files of
// the caller's own.
absl::StatusOr<bool> IsThere(const ArtifactFlags& flags, const v1::FileEntry& entry) {
  for (const absl::string_view part : absl::StrSplit(entry.path(), '/')) {
    if (part.empty() || part == "." || part == "..")
      return absl::DataLossError(absl::StrCat("the artifact names a file outside itself: \"", entry.path(), "\""));
  }
  const std::string target = absl::StrCat(flags.out, "/", entry.path());
  std::error_code error;
  if (!std::filesystem::exists(target, error)) return false;
  const auto found = artifact::Sha256File(target);
  if (found.ok() && *found == entry.sha256()) return true;
  if (flags.overwrite) return false;
  return Here(absl::AlreadyExistsError(
      absl::StrCat(target, ": expected no file, or the artifact's own, found another; --overwrite replaces it")));
}

absl::Status PullFile(v1::ArtifactService::Stub& stub, const std::string& digest, const v1::FileEntry& entry,
                      const std::string& out) {
  const std::string target = absl::StrCat(out, "/", entry.path());
  RLHF_RETURN_IF_ERROR(Here(MakeDirs(std::filesystem::path(target).parent_path().string())));
  RLHF_ASSIGN_OR_RETURN(const std::unique_ptr<PartFile> file, PartFile::Create(target));
  v1::DownloadRequest request;
  request.set_digest(digest);
  request.set_path(entry.path());
  const auto context = CallContext(absl::Hours(1));
  const auto reader = stub.Download(context.get(), request);
  artifact::Sha256 sha;
  v1::DownloadChunk chunk;
  absl::Status written;
  while (written.ok() && reader->Read(&chunk)) {
    written = file->Write(chunk.data());
    sha.Update(chunk.data());
  }
  if (!written.ok()) context->TryCancel();
  const absl::Status called = FromGrpc(reader->Finish());
  RLHF_RETURN_IF_ERROR(written);
  RLHF_RETURN_IF_ERROR(called);
  if (sha.FinishHex() != entry.sha256())
    return absl::DataLossError(absl::StrCat("what came for ", target, " does not match its digest; pull again"));
  return file->Finish();
}

int Pull(const ConnectionFlags& connection, const ArtifactFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto reference = WholeReference(*channel, flags.reference);
  if (!reference.ok()) return Fail(reference.status());
  const auto stub = v1::ArtifactService::NewStub(*channel);
  v1::GetArtifactRequest request;
  request.set_reference(*reference);
  request.set_project(connection.project);
  v1::Artifact artifact;
  const auto context = CallContext();
  if (const absl::Status status = FromGrpc(stub->GetArtifact(context.get(), request, &artifact)); !status.ok())
    return Fail(status);
  std::vector<const v1::FileEntry*> missing;  // known before the first is written
  for (const v1::FileEntry& entry : artifact.files()) {
    const auto there = IsThere(flags, entry);
    if (!there.ok()) return Fail(there.status());
    if (!*there) missing.push_back(&entry);
  }
  for (const v1::FileEntry* entry : missing) {
    const absl::Status status = PullFile(*stub, artifact.digest(), *entry, flags.out);
    if (!status.ok()) return Fail(status);
  }
  std::printf("%s: %d files, %s\n", flags.out.c_str(), artifact.files_size(), Bytes(artifact.total_size()).c_str());
  return v1::EXIT_OK;
}

int Pin(const ConnectionFlags& connection, const ArtifactFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto digest = WholeReference(*channel, flags.reference);
  if (!digest.ok()) return Fail(digest.status());
  v1::PinArtifactRequest request;
  request.set_digest(*digest);
  request.set_pinned(!flags.unpin);
  v1::Artifact artifact;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::ArtifactService::NewStub(*channel)->PinArtifact(context.get(), request, &artifact));
  if (!status.ok()) return Fail(status);
  std::printf("%s %s\n", artifact.digest().c_str(), artifact.pinned() ? "pinned" : "not pinned");
  return v1::EXIT_OK;
}

int Delete(const ConnectionFlags& connection, const ArtifactFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto digest = WholeReference(*channel, flags.reference);
  if (!digest.ok()) return Fail(digest.status());
  v1::DeleteArtifactRequest request;
  request.set_digest(*digest);
  v1::DeleteArtifactResponse response;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::ArtifactService::NewStub(*channel)->DeleteArtifact(context.get(), request, &response));
  if (!status.ok()) return Fail(status);
  std::printf("%s deleted\n", digest->c_str());
  return v1::EXIT_OK;
}

int Alias(const ConnectionFlags& connection, const ArtifactFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto digest = WholeReference(*channel, flags.reference);
  if (!digest.ok()) return Fail(digest.status());
  v1::SetAliasRequest request;
  request.set_alias(flags.alias);
  request.set_digest(*digest);
  request.set_project(connection.project);
  request.set_remove(flags.reference.empty());
  v1::Artifact artifact;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::ArtifactService::NewStub(*channel)->SetAlias(context.get(), request, &artifact));
  if (!status.ok()) return Fail(status);
  std::printf("%s %s\n", flags.alias.c_str(), request.remove() ? "names nothing any more" : artifact.digest().c_str());
  return v1::EXIT_OK;
}

}  // namespace

void AddArtifactCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<ArtifactFlags>();
  for (const auto& [group, kind] :
       {std::pair<std::string, std::string>{"models", "model"}, {"data", "data"}, {"checkpoints", "checkpoint"}}) {
    const bool pushed = kind != "checkpoint";  // learners make those
    auto* parent =
        app.add_subcommand(group, absl::StrCat("List, ", pushed ? "push, " : "", "pull, pin and delete ", group));
    parent->require_subcommand(1);
    auto* list = parent->add_subcommand("list", "List them");
    list->callback([=, &connection, kind = kind] { *run = [=, &connection] { return List(connection, kind); }; });
    if (pushed) {
      auto* push = parent->add_subcommand("push", "Upload a file or folder; prints its digest");
      push->add_option("path", flags->path, "File or folder")->required();
      push->add_option("--alias", flags->alias, "A name for it in the project");
      push->callback(
          [=, &connection, kind = kind] { *run = [=, &connection] { return Push(connection, kind, *flags); }; });
    }
    auto* pull = parent->add_subcommand("pull", "Download it into a folder, verified");
    pull->add_option("reference", flags->reference, "Digest, the beginning of one, or alias")->required();
    pull->add_option("--out", flags->out, "Folder to write")->required();
    pull->add_flag("--overwrite", flags->overwrite, "Replace files there that are others");
    pull->callback([=, &connection] { *run = [=, &connection] { return Pull(connection, *flags); }; });
    auto* pin = parent->add_subcommand("pin", "Keep it from being deleted");
    pin->add_option("digest", flags->reference, "Digest, or the beginning of one")->required();
    pin->add_flag("--remove", flags->unpin, "Take the pin off");
    pin->callback([=, &connection] { *run = [=, &connection] { return Pin(connection, *flags); }; });
    auto* alias = parent->add_subcommand("alias", "Give it a name in the project, or take one away");
    alias->add_option("name", flags->alias, "The name")->required();
    alias->add_option("digest", flags->reference, "What it names; left out: nothing any more");
    alias->callback([=, &connection] { *run = [=, &connection] { return Alias(connection, *flags); }; });
    auto* remove = parent->add_subcommand("delete", "Delete it for good; refused while it is pinned, named or used");
    remove->add_option("digest", flags->reference, "Digest, or the beginning of one")->required();
    remove->callback([=, &connection] { *run = [=, &connection] { return Delete(connection, *flags); }; });
  }
}

}  // namespace rlhf::cli
