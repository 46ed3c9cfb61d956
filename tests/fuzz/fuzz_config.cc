// Any bytes as config.json; what is accepted can be written and counted.
#include "absl/strings/string_view.h"
#include "artifact/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = rlhf::artifact::ParseModelConfig(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!config.ok()) return 0;
  (void)rlhf::artifact::ModelConfigToJson(*config);
  (void)rlhf::artifact::NumParameters(*config);
  return 0;
}
