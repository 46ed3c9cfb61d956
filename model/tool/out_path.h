// What a command writes is none of what it reads.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace rlhf::model::tool {

struct Input {
  const char* flag;  // "--model"
  std::string path;  // empty: not given
};
// InvalidArgument when `out`, the folder that --out names, is a folder that is read, by whatever name (relative, over a
// link), or when one of `files`, by which it will be written, is a file that is read. To be asked before anything is
// written.
absl::Status CheckOutFolder(const std::string& out, const std::vector<std::string>& files,
                            const std::vector<Input>& inputs);
// The same of a file that --out names, which is also not to replace a file of a folder that is read.
absl::Status CheckOutFile(const std::string& out, const std::vector<Input>& inputs);

}  // namespace rlhf::model::tool
