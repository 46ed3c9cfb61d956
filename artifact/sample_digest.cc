#include "artifact/sample_digest.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"

namespace rlhf::artifact {
namespace {

void AppendNumber(uint32_t value, std::string* bytes) {
  for (int i = 0; i < 4; ++i) bytes->push_back(static_cast<char>(value >> (8 * i)));
}

}  // namespace

std::string TokenDigest(const v1::Sample& sample) {
  std::string bytes;
  AppendNumber(static_cast<uint32_t>(sample.prompt_tokens_size()), &bytes);
  AppendNumber(static_cast<uint32_t>(sample.response_tokens_size()), &bytes);
  for (const int32_t token : sample.prompt_tokens()) AppendNumber(static_cast<uint32_t>(token), &bytes);
  for (const int32_t token : sample.response_tokens()) AppendNumber(static_cast<uint32_t>(token), &bytes);
  return Xxh3Hex(bytes.data(), bytes.size());
}

std::string SampleName(const v1::SampleId& id) {
  return absl::StrCat(id.step(), "/", id.ordinal(), "/", id.index());
}

std::string BatchLine(const v1::SampleId& id, int attempt, const std::string& token_digest) {
  return absl::StrCat(id.step(), "/", id.ordinal(), "/", id.index(), "@", attempt, " ", token_digest);
}

std::string BatchLine(const v1::Sample& sample) {
  return BatchLine(sample.id(), sample.attempt(), TokenDigest(sample));
}

std::string BatchDigest(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) absl::StrAppend(&text, line, "\n");
  return Xxh3Hex(text.data(), text.size());
}

}  // namespace rlhf::artifact
