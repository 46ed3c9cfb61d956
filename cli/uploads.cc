#include "cli/uploads.h"

#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "artifact/artifact_root.h"
#include "cli/connection.h"
#include "cli/utf8.h"
#include "client/cpp/artifact_cache.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr char kPrefix[] = "file:";
constexpr char kModels[] = "models";  // the only list of references

class Uploader {
 public:
  Uploader(const std::shared_ptr<grpc::Channel>& channel, std::string base_dir, std::string project)
      : channel_(channel), base_dir_(std::move(base_dir)), project_(std::move(project)) {}

  absl::Status Walk(google::protobuf::Message* message, const std::string& path) {
    const auto* reflection = message->GetReflection();
    std::vector<const google::protobuf::FieldDescriptor*> fields;
    reflection->ListFields(*message, &fields);
    for (const auto* field : fields) {
      const std::string where = path.empty() ? field->name() : absl::StrCat(path, ".", field->name());
      if (field->is_map()) continue;
      if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE) {
        if (field->is_repeated()) {
          for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
            RLHF_RETURN_IF_ERROR(
                Walk(reflection->MutableRepeatedMessage(message, field, i), absl::StrCat(where, "[", i, "]")));
          }
        } else {
          RLHF_RETURN_IF_ERROR(Walk(reflection->MutableMessage(message, field), where));
        }
      } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING && field->is_repeated()) {
        if (field->name() != kModels) continue;  // other lists are texts: patterns, stop texts
        for (int i = 0; i < reflection->FieldSize(*message, field); ++i) {
          const std::string value = reflection->GetRepeatedString(*message, field, i);
          if (!absl::StartsWith(value, kPrefix)) continue;
          RLHF_ASSIGN_OR_RETURN(const std::string digest,
                                Upload(value.substr(sizeof(kPrefix) - 1), absl::StrCat(where, "[", i, "]")));
          reflection->SetRepeatedString(message, field, i, digest);
        }
      } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING) {
        const std::string value = reflection->GetString(*message, field);
        if (!absl::StartsWith(value, kPrefix)) continue;
        RLHF_ASSIGN_OR_RETURN(const std::string digest, Upload(value.substr(sizeof(kPrefix) - 1), where));
        reflection->SetString(message, field, digest);
      }
    }
    return absl::OkStatus();
  }

  std::vector<v1::Artifact> uploaded;

 private:
  absl::StatusOr<std::string> Upload(const std::string& name, const std::string& where) {
    const std::filesystem::path path = std::filesystem::path(base_dir_) / name;  // or `name`, when it is absolute
    const std::string full = path.lexically_normal().string();
    if (const auto known = digests_.find(full); known != digests_.end()) return known->second;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      return Here(absl::NotFoundError(absl::StrCat(where, ": expected a file or folder at ", full,
                                                   ", found none (paths are relative to the job's file)")));
    }
    if (const absl::Status readable = CheckReadable(full); !readable.ok()) return Annotate(readable, where);
    std::string digest;
    if (channel_ == nullptr) {
      auto manifest = artifact::ComputeManifest(full, artifact::Origin::kUser);
      if (!manifest.ok()) return Here(Annotate(manifest.status(), where));
      digest = manifest->digest;
      uploaded.emplace_back().set_digest(digest);
    } else {
      const bool model = std::filesystem::exists(path / "config.json", error);
      auto artifact =
          client::UploadArtifact(channel_, full, model ? "model" : "data", project_, "", artifact::Origin::kUser);
      if (!artifact.ok()) return Annotate(artifact.status(), where);
      digest = artifact->digest();
      uploaded.push_back(*std::move(artifact));
    }
    return digests_[full] = digest;
  }

  const std::shared_ptr<grpc::Channel>& channel_;
  std::string base_dir_, project_;
  std::map<std::string, std::string> digests_;
};

}  // namespace

absl::Status CheckReadable(const std::string& path) {
  namespace fs = std::filesystem;
  const auto check = [](const fs::path& file) -> absl::Status {
    const std::string name = file.filename().string();
    if (!CheckUtf8(name, "").ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file.parent_path().string(), ": expected names of files in UTF-8, found \"", absl::CHexEscape(name), "\""));
    }
    if (access(file.c_str(), R_OK) == 0) return absl::OkStatus();
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", file.string()));
  };
  std::error_code error;
  if (!fs::is_directory(path, error)) return Here(check(path));
  absl::Status status;
  fs::recursive_directory_iterator entry(path, error);
  for (; status.ok() && !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code ignored;
    if (artifact::IsHidden(entry->path())) {
      entry.disable_recursion_pending();
    } else if (!entry->is_symlink(ignored) ||
               fs::exists(entry->path(), ignored)) {  // of such a link the manifest says it
      status = check(entry->path());
    }
  }
  if (status.ok() && error) status = absl::ErrnoToStatus(error.value(), absl::StrCat("cannot read the folder ", path));
  return Here(std::move(status));
}

absl::StatusOr<std::vector<v1::Artifact>> UploadFileReferences(const std::shared_ptr<grpc::Channel>& channel,
                                                               const std::string& base_dir, const std::string& project,
                                                               v1::JobSpec* spec) {
  Uploader uploader(channel, base_dir, project);
  RLHF_RETURN_IF_ERROR(uploader.Walk(spec, ""));
  return std::move(uploader.uploaded);
}

}  // namespace rlhf::cli
