// Recorded reference values: tests/golden/NAME as JSON.
#pragma once

#include <cstdlib>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace rlhf {

inline std::string SourceDir() {
  const char* dir = std::getenv("RLHF_SOURCE_DIR");
  return dir == nullptr ? "." : dir;
}
inline nlohmann::json Golden(const std::string& name) {
  std::ifstream file(SourceDir() + "/tests/golden/" + name);
  EXPECT_TRUE(file.good()) << "tests/golden/" << name << " is missing; RLHF_SOURCE_DIR is " << SourceDir();
  return nlohmann::json::parse(file, nullptr, false);
}
// The pretrained model of 1 MB that lies beside the repository; empty where it is not there.
inline std::string StoriesModel() {
  const std::string dir = SourceDir() + "/../shared/data/stories260K";
  return std::ifstream(dir + "/config.json").good() ? dir : "";
}

}  // namespace rlhf
