// A folder as Hugging Face's downloader keeps it in its cache: each file is a link to a blob elsewhere, and some files
// are hidden.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

namespace rlhf {

// Links of FOLDER's files, below CACHE; returns CACHE/snapshots/1.
inline std::string MakeLinkedFolder(const std::string& folder, const std::string& cache) {
  namespace fs = std::filesystem;
  const fs::path blobs = fs::path(cache) / "blobs", snapshot = fs::path(cache) / "snapshots/1";
  fs::create_directories(blobs);
  fs::create_directories(snapshot / ".cache");
  int count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const fs::path blob = blobs / std::to_string(++count), link = snapshot / fs::relative(entry.path(), folder);
    fs::copy_file(entry.path(), blob);
    fs::create_directories(link.parent_path());
    fs::create_symlink(fs::relative(blob, link.parent_path()), link);
  }
  std::ofstream(blobs / "attributes") << "*.safetensors filter=lfs\n";
  fs::create_symlink("../../blobs/attributes", snapshot / ".gitattributes");
  std::ofstream(snapshot / ".cache/download.lock") << "";
  return snapshot.string();
}

}  // namespace rlhf
