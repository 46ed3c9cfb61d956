// ByteLevel and ByteFallback: tokens that stand for bytes.
#include "artifact/tokenizer/byte_level.h"
#include "artifact/tokenizer/decoders/factories.h"
#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

class ByteLevel : public Decoder {
 public:
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    std::string bytes;
    for (const std::string& token : *tokens) AppendBytesOfToken(token, &bytes);
    *tokens = {ReplaceInvalidUtf8(bytes)};
    return absl::OkStatus();
  }
};

// "<0x0A>" → 10; -1 for any other token. Rust's reading: a sign before a single digit counts.
int ByteOf(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  const int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

class ByteFallback : public Decoder {
 public:
  absl::Status Apply(std::vector<std::string>* tokens) const override {
    std::vector<std::string> out;
    std::string bytes;
    // A run of bytes is one text when all of it is UTF-8, else one U+FFFD a byte.
    const auto flush = [&] {
      if (IsValidUtf8(bytes)) {
        if (!bytes.empty()) out.push_back(bytes);
      } else {
        for (size_t i = 0; i < bytes.size(); ++i) out.emplace_back("\xEF\xBF\xBD");
      }
      bytes.clear();
    };
    for (std::string& token : *tokens) {
      if (const int byte = ByteOf(token); byte >= 0) {
        bytes += static_cast<char>(byte);
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    *tokens = std::move(out);
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> MakeByteLevelDecoder(JsonObject* json) {
  json->Ignore({"add_prefix_space", "trim_offsets", "use_regex"});  // of the pre-tokenizer
  return std::make_unique<ByteLevel>();
}

absl::StatusOr<std::unique_ptr<Decoder>> MakeByteFallback(JsonObject*) {
  return std::make_unique<ByteFallback>();
}

}  // namespace rlhf::artifact
