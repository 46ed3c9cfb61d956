#include "artifact/tokenizer/byte_level.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>

namespace rlhf::artifact {
namespace {

std::string Utf8(uint32_t code) {
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// Printable Latin-1 stands for itself; the other bytes get code points from 256 on, in order.
std::array<std::string, 256> MakeSymbols() {
  std::array<std::string, 256> out;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
    out[byte] = Utf8(printable ? byte : next++);
  }
  return out;
}

const std::array<std::string, 256>& Symbols() {
  static const auto* symbols = new std::array<std::string, 256>(MakeSymbols());
  return *symbols;
}

}  // namespace

const std::string& ByteSymbol(unsigned char byte) {
  return Symbols()[byte];
}

std::string ToByteSymbols(absl::string_view bytes) {
  std::string out;
  for (const char byte : bytes) out += ByteSymbol(static_cast<unsigned char>(byte));
  return out;
}

std::string FromByteSymbols(absl::string_view symbols) {
  static const auto* bytes = [] {
    auto* map = new std::map<std::string, char>();
    for (int byte = 0; byte < 256; ++byte)
      (*map)[ByteSymbol(static_cast<unsigned char>(byte))] = static_cast<char>(byte);
    return map;
  }();
  std::string out;
  while (!symbols.empty()) {
    const size_t length = std::max<size_t>(1, Utf8Length(symbols));
    const std::string symbol(symbols.substr(0, length));
    const auto found = bytes->find(symbol);
    if (found == bytes->end()) {
      out += symbol;
    } else {
      out += found->second;
    }
    symbols.remove_prefix(length);
  }
  return out;
}

size_t Utf8Length(absl::string_view s) {
  const auto at = [&](size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0U; };
  const auto tail = [&](size_t i) { return (at(i) & 0xC0) == 0x80; };
  const unsigned char a = static_cast<unsigned char>(at(0));
  if (s.empty()) return 0;
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF) return tail(1) ? 2 : 0;
  if (a >= 0xE0 && a <= 0xEF) {
    if (!tail(1) || !tail(2) || (a == 0xE0 && at(1) < 0xA0) || (a == 0xED && at(1) > 0x9F)) return 0;
    return 3;
  }
  if (a >= 0xF0 && a <= 0xF4) {
    if (!tail(1) || !tail(2) || !tail(3) || (a == 0xF0 && at(1) < 0x90) || (a == 0xF4 && at(1) > 0x8F)) return 0;
    return 4;
  }
  return 0;
}

std::string ReplaceInvalidUtf8(absl::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    size_t length = Utf8Length(bytes);
    if (length > 0) {
      out.append(bytes.data(), length);
      bytes.remove_prefix(length);
      continue;
    }
    out += "\xEF\xBF\xBD";
    // A sequence that breaks off counts once: its lead byte with the tail bytes that could have belonged to it.
    const auto lead = static_cast<unsigned char>(bytes[0]);
    const size_t wanted = lead >= 0xF0 && lead <= 0xF4   ? 4
                          : lead >= 0xE0 && lead <= 0xEF ? 3
                          : lead >= 0xC2 && lead <= 0xDF ? 2
                                                         : 1;
    length = 1;
    while (length < wanted && length < bytes.size()) {
      const auto next = static_cast<unsigned char>(bytes[length]);
      unsigned low = 0x80, high = 0xBF;
      if (length == 1 && lead == 0xE0) low = 0xA0;
      if (length == 1 && lead == 0xED) high = 0x9F;
      if (length == 1 && lead == 0xF0) low = 0x90;
      if (length == 1 && lead == 0xF4) high = 0x8F;
      if (next < low || next > high) break;
      ++length;
    }
    bytes.remove_prefix(length);
  }
  return out;
}

}  // namespace rlhf::artifact
