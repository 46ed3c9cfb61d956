// A process whose folder's volume does not answer while a file is there (hang.cc).
#pragma once

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "tests/integration/local_service.h"

namespace rlhf {

// The beginning of a script (WrapInScript) whose process has its volume at `folder`.
inline std::string HangsBelow(const std::string& folder, const std::string& flag) {
  return absl::StrCat("export HANG_BELOW=", folder, " HANG_WHILE=", flag, " LD_PRELOAD=", LocalService::FaultsBinDir(),
                      "/librlhf_hang.so\n");
}
inline void SetHangWhile(const std::string& flag, bool hangs) {
  if (hangs) {
    EXPECT_TRUE(WriteFileDurably(flag, "").ok());
  } else {
    std::filesystem::remove(flag);
  }
}

}  // namespace rlhf
