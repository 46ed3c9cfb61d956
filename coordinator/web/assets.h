// The pages' files, compiled in from coordinator/web/static/ (see coordinator/web.cmake). Immutable.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rlhf::coordinator {

struct WebAsset {
  const char* path;  // "/app.js"
  const char* content_type;
  absl::string_view content;
};
const std::vector<WebAsset>& WebAssets();

}  // namespace rlhf::coordinator
