#include "artifact/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "artifact/tokenizer/unicode.h"

namespace rlhf::artifact {
namespace {

struct Alphabet {
  std::array<std::string, 256> symbols;
  std::array<int16_t, 512> byte_of;  // by code point; -1: none

  // Printable Latin-1 stands for itself; the other bytes get code points from 256 on, in order.
  Alphabet() {
    byte_of.fill(-1);
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
      const char32_t code = printable ? byte : next++;
      AppendUtf8(code, &symbols[byte]);
      byte_of[code] = static_cast<int16_t>(byte);
    }
  }
};

const Alphabet& TheAlphabet() {
  static const auto* alphabet = new Alphabet();
  return *alphabet;
}

}  // namespace

const std::string& ByteSymbol(unsigned char byte) {
  return TheAlphabet().symbols[byte];
}

void AppendByteSymbols(absl::string_view bytes, std::string* out) {
  const Alphabet& alphabet = TheAlphabet();
  for (const char byte : bytes) *out += alphabet.symbols[static_cast<unsigned char>(byte)];
}

void AppendBytesOfToken(absl::string_view token, std::string* out) {
  const Alphabet& alphabet = TheAlphabet();
  const size_t before = out->size();
  for (absl::string_view rest = token; !rest.empty();) {
    size_t length = 0;
    const char32_t code = FirstCodePoint(rest, &length);
    const int byte = code < alphabet.byte_of.size() ? alphabet.byte_of[code] : -1;
    if (byte < 0) {
      out->resize(before);
      out->append(token.data(), token.size());
      return;
    }
    *out += static_cast<char>(byte);
    rest.remove_prefix(length);
  }
}

}  // namespace rlhf::artifact
