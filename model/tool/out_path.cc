#include "model/tool/out_path.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace rlhf::model::tool {
namespace {

namespace fs = std::filesystem;

// Of paths that are not there: no.
bool Same(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::equivalent(a, b, error) && !error;
}

absl::Status Refused(const std::string& out, const Input& input, const std::string& found) {
  return absl::InvalidArgumentError(absl::StrCat("--out: expected other than what is read, found ", out, ", which ",
                                                 found, " ", input.flag, " ", input.path, "; nothing was written"));
}

}  // namespace

absl::Status CheckOutFolder(const std::string& out, const std::vector<std::string>& files,
                            const std::vector<Input>& inputs) {
  for (const Input& input : inputs) {
    if (input.path.empty()) continue;
    if (Same(out, input.path)) return Refused(out, input, "is");
    for (const std::string& file : files) {
      if (Same(fs::path(out) / file, input.path)) return Refused(out, input, "would get a new");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOutFile(const std::string& out, const std::vector<Input>& inputs) {
  std::error_code error;
  const fs::path folder = fs::absolute(out, error).parent_path();
  for (const Input& input : inputs) {
    if (input.path.empty()) continue;
    if (Same(out, input.path)) return Refused(out, input, "is");
    if (fs::exists(out, error) && Same(folder, input.path)) return Refused(out, input, "is a file of");
  }
  return absl::OkStatus();
}

}  // namespace rlhf::model::tool
