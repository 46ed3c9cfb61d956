// Words of `rlhfctl up` that start an instance through a shell script: more flags than `up` has, or a start that waits.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"

namespace rlhf {

// The script gets the instance's command as its arguments: `exec "$@" --flag value`. It lies in the cluster's folder.
inline std::vector<std::string> WrapInScript(const std::string& cluster_dir, const std::string& instance,
                                             const std::string& script) {
  const std::string path = absl::StrCat(cluster_dir, "/start-", instance);
  EXPECT_TRUE(MakeDirs(cluster_dir).ok());
  EXPECT_TRUE(WriteFileDurably(path, absl::StrCat("#!/bin/sh\n", script, "\n")).ok());
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  return {"--wrap", absl::StrCat(instance, "=", path)};
}

}  // namespace rlhf
