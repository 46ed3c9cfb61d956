#include "cli/secret_file.h"

#include <openssl/rand.h>
#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/durable_file.h"

namespace rlhf::cli {

absl::Status WriteSecretFile(const std::string& path, const std::string& content) {
  // The file is made anew by a rename; the mask keeps its first moment private too.
  const mode_t before = umask(077);
  absl::Status status = WriteFileDurably(path, content);
  umask(before);
  if (status.ok() && chmod(path.c_str(), 0600) != 0)
    status = absl::InternalError(absl::StrCat("cannot protect ", path));
  return status;
}

absl::Status MakePrivateFolder(const std::string& path) {
  std::filesystem::path folder = std::filesystem::absolute(path).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "pki/"
  if (absl::Status status = MakeDirs(folder.parent_path().string()); !status.ok()) return status;
  return MakeDirs(folder.string(), 0700);
}

absl::StatusOr<std::string> NewToken() {
  unsigned char raw[38];
  if (RAND_bytes(raw, sizeof(raw)) != 1) return absl::InternalError("the system's random source failed");
  const absl::string_view bytes(reinterpret_cast<const char*>(raw), sizeof(raw));
  return absl::StrCat("rlhf_", absl::BytesToHexString(bytes.substr(0, 6)), "_",
                      absl::BytesToHexString(bytes.substr(6)));
}

}  // namespace rlhf::cli
