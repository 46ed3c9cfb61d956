#include <iostream>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/dataset.h"
#include "artifact/tokenizer.h"
#include "common/durable_file.h"
#include "model/tool/commands.h"
#include "model/tool/out_path.h"

namespace rlhf::model::tool {
namespace {

using nlohmann::json;

absl::Status BadLine(int64_t line, const char* expected, const std::string& found) {
  return absl::InvalidArgumentError(
      absl::StrCat("standard input:", line, ": expected ", expected, ", found ", found.substr(0, 60)));
}

}  // namespace

absl::Status TrainTokenizer(const std::vector<std::string>& files, int vocab_size, const std::string& out_dir) {
  std::vector<Input> inputs;
  for (const std::string& file : files) inputs.push_back({"FILE", file});
  if (absl::Status status = CheckOutFolder(out_dir, {"tokenizer.json", "tokenizer_config.json"}, inputs); !status.ok())
    return status;
  if (const absl::Status made = MakeDirs(out_dir); !made.ok()) return made;
  return artifact::TrainByteLevelBpe(files, vocab_size, out_dir);
}

absl::Status Tokenize(const std::string& model_dir) {
  const auto tokenizer = artifact::Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    ++number;
    const json text = json::parse(line, nullptr, false);
    absl::StatusOr<std::vector<int32_t>> ids;
    if (text.is_string()) {
      ids = (*tokenizer)->Encode(text.get<std::string>());
    } else if (text.is_object() && text.contains("messages")) {
      const auto messages = artifact::ParseMessages(line, "messages");
      ids = messages.ok() ? (*tokenizer)->EncodeChat(*messages) : messages.status();
    } else {
      return BadLine(number, "a JSON string or {\"messages\": […]}", line);
    }
    if (!ids.ok())
      return absl::Status(ids.status().code(), absl::StrCat("standard input:", number, ": ", ids.status().message()));
    std::cout << json(*ids).dump() << "\n";
  }
  return absl::OkStatus();
}

absl::Status Detokenize(const std::string& model_dir) {
  const auto tokenizer = artifact::Tokenizer::Load(model_dir);
  if (!tokenizer.ok()) return tokenizer.status();
  int64_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    ++number;
    const json parsed = json::parse(line, nullptr, false);
    std::vector<int32_t> ids;
    bool good = parsed.is_array();
    for (size_t i = 0; good && i < parsed.size(); ++i) {
      good = parsed[i].is_number_integer();
      if (good) ids.push_back(parsed[i].get<int32_t>());
    }
    if (!good) return BadLine(number, "a JSON array of ids", line);
    const auto text = (*tokenizer)->Decode(ids);
    if (!text.ok())
      return absl::Status(text.status().code(), absl::StrCat("standard input:", number, ": ", text.status().message()));
    std::cout << json(*text).dump(-1, ' ', false, json::error_handler_t::replace) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace rlhf::model::tool
