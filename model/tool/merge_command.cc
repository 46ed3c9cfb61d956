#include "absl/strings/str_cat.h"
#include "artifact/model_config.h"
#include "model/lora.h"
#include "model/tool/commands.h"
#include "model/tool/out_path.h"
#include "model/weights_io.h"

namespace rlhf::model::tool {

absl::Status Merge(const std::string& model_dir, const std::string& adapter_dir, const std::string& out_dir,
                   const std::string& dtype) {
  if (absl::Status status = CheckOutFolder(out_dir, {}, {{"--model", model_dir}, {"--adapter", adapter_dir}});
      !status.ok())
    return status;
  const auto config = artifact::LoadModelConfig(model_dir);
  if (!config.ok()) return config.status();
  LoadOptions load;
  load.head = config->num_labels > 0 ? HeadKind::kScalar : HeadKind::kLm;
  const std::string type = dtype.empty() ? config->dtype : dtype;
  load.dtype = type == "bfloat16" ? torch::kBFloat16 : type == "float16" ? torch::kFloat16 : torch::kFloat32;
  const auto model = LoadModel(model_dir, load);
  if (!model.ok()) return model.status();
  if (!adapter_dir.empty()) {
    if (absl::Status status = LoadAdapter(adapter_dir, model->get()); !status.ok()) return status;
  }
  return SaveModel(**model, out_dir, model_dir);
}

}  // namespace rlhf::model::tool
