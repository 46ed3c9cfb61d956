// Encodes texts with a tokenizer of ours, for comparisons and timings against the `tokenizers` library.
//
//   encode_tool ids DIR FILE         FILE: a JSON string a line. Out, a line each:
//   {"plain":[…],"special":[…],"text":"…"}:
//                                    ids with literal special tokens as text, and as tokens; the second decoded again
//   encode_tool bytes DIR FILE       FILE: hexadecimal bytes a line. Out: as above
//   encode_tool time DIR FILE        Out: {"bytes":n,"seconds":[five runs over all lines, special tokens as tokens]}
//   encode_tool train VOCAB OUT FILE…
#include <chrono>
#include <fstream>
#include <iostream>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "artifact/tokenizer.h"

namespace rlhf::artifact {
namespace {

using Json = nlohmann::json;
constexpr EncodeOptions kPlain{}, kSpecial{.parse_special_tokens = true};

int Fail(const absl::Status& status) {
  std::cerr << status << "\n";
  return 1;
}

int Time(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  Json seconds = Json::array();
  size_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  for (int run = 0; run < 5; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (const std::string& text : texts) {
      if (auto ids = tokenizer.Encode(text, kSpecial); !ids.ok()) return Fail(ids.status());
    }
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::cout << Json{{"bytes", bytes}, {"seconds", seconds}}.dump() << "\n";
  return 0;
}

int Compare(const Tokenizer& tokenizer, const std::vector<std::string>& texts) {
  for (const std::string& given : texts) {
    const auto plain = tokenizer.Encode(given, kPlain), special = tokenizer.Encode(given, kSpecial);
    if (!plain.ok()) return Fail(plain.status());
    if (!special.ok()) return Fail(special.status());
    const auto text = tokenizer.Decode(*special, false);
    if (!text.ok()) return Fail(text.status());
    std::cout << Json{{"plain", *plain}, {"special", *special}, {"text", *text}}.dump() << "\n";
  }
  return 0;
}

int Main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() >= 4 && args[0] == "train") {
    const absl::Status status = TrainByteLevelBpe({args.begin() + 3, args.end()}, std::stoi(args[1]), args[2]);
    return status.ok() ? 0 : Fail(status);
  }
  if (args.size() != 3) {
    std::cerr << "expected: encode_tool ids|bytes|time DIR FILE, or train VOCAB OUT FILE…\n";
    return 2;
  }
  const auto tokenizer = Tokenizer::Load(args[1]);
  if (!tokenizer.ok()) return Fail(tokenizer.status());
  std::ifstream in(args[2]);
  std::vector<std::string> texts;
  for (std::string line; std::getline(in, line);)
    texts.push_back(args[0] == "bytes" ? absl::HexStringToBytes(line) : Json::parse(line).get<std::string>());
  if (args[0] == "time") return Time(**tokenizer, texts);
  return Compare(**tokenizer, texts);
}

}  // namespace
}  // namespace rlhf::artifact

int main(int argc, char** argv) {
  return rlhf::artifact::Main(argc, argv);
}
