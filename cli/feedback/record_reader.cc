#include "cli/feedback/record_reader.h"

#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace rlhf::cli {
namespace {

constexpr size_t kLongestRecord = 64 << 20;
constexpr unsigned kPiece = 1 << 20;

bool IsSpace(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

}  // namespace

struct RecordReader::Impl {
  std::string path;
  gzFile file = nullptr;
  std::vector<char> piece = std::vector<char>(kPiece);
  size_t at = 0, size = 0;
  bool end = false;
  int64_t line = 1;
  bool started = false, array = false, first = true;

  ~Impl() {
    if (file != nullptr) gzclose(file);
  }
  // False at the end.
  absl::StatusOr<bool> Fill() {
    if (at < size) return true;
    if (end) return false;
    const int got = gzread(file, piece.data(), kPiece);
    int code = Z_OK;
    const char* message = gzerror(file, &code);
    if (got < 0 || (got == 0 && code != Z_OK && code != Z_STREAM_END))
      return absl::DataLossError(absl::StrCat(path, ":", line, ": cannot be read: ", message));
    at = 0;
    size = static_cast<size_t>(got);
    end = got == 0;
    return got > 0;
  }
  absl::Status TooLong() const {
    return absl::DataLossError(absl::StrCat(path, ":", line, ": expected a record of at most ", kLongestRecord,
                                            " bytes; is this JSON lines, or one JSON array?"));
  }
  absl::StatusOr<bool> SkipSpace() {
    while (true) {
      auto more = Fill();
      if (!more.ok() || !*more) return more;
      for (; at < size; ++at) {
        if (!IsSpace(piece[at])) return true;
        line += piece[at] == '\n' ? 1 : 0;
      }
    }
  }
  absl::StatusOr<bool> NextLine(std::string* text, int64_t* number) {
    text->clear();
    *number = line;
    while (true) {
      auto more = Fill();
      if (!more.ok()) return more;
      if (!*more) return !text->empty();
      const char* begin = piece.data() + at;
      const auto* newline = static_cast<const char*>(std::memchr(begin, '\n', size - at));
      const size_t length = newline == nullptr ? size - at : static_cast<size_t>(newline - begin);
      text->append(begin, length);
      at += length;
      if (text->size() > kLongestRecord) return TooLong();
      if (newline == nullptr) continue;
      ++at;
      ++line;
      return true;
    }
  }
  // One element of the array: up to the comma or bracket that ends it, outside of strings and deeper brackets.
  absl::StatusOr<bool> NextElement(std::string* text, int64_t* number) {
    text->clear();
    auto more = SkipSpace();
    if (!more.ok() || !*more) return more;
    if (piece[at] == ']') {
      end = true;
      at = size = 0;
      return false;
    }
    if (!first && piece[at] == ',') {
      ++at;
      more = SkipSpace();
      if (!more.ok() || !*more) return more;
    }
    first = false;
    *number = line;
    int depth = 0;
    bool in_string = false, escaped = false;
    while (true) {
      more = Fill();
      if (!more.ok()) return more;
      if (!*more) return !text->empty();
      for (; at < size; ++at) {
        const char c = piece[at];
        line += c == '\n' ? 1 : 0;
        if (in_string) {
          in_string = escaped || c != '"';
          escaped = !escaped && c == '\\';
        } else if (c == '"') {
          in_string = true;
        } else if (c == '{' || c == '[') {
          ++depth;
        } else if (depth == 0 && (c == ',' || c == ']')) {
          return true;
        } else if (c == '}' || c == ']') {
          --depth;
        }
        text->push_back(c);
      }
      if (text->size() > kLongestRecord) return TooLong();
    }
  }
};

RecordReader::RecordReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RecordReader::~RecordReader() = default;

absl::StatusOr<std::unique_ptr<RecordReader>> RecordReader::Open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  errno = 0;
  impl->file = path == "-" ? gzdopen(0, "rb") : gzopen(path.c_str(), "rb");
  if (impl->file == nullptr)
    return absl::ErrnoToStatus(errno == 0 ? ENOMEM : errno, absl::StrCat("cannot open ", path));
  gzbuffer(impl->file, kPiece);
  return std::unique_ptr<RecordReader>(new RecordReader(std::move(impl)));
}

absl::StatusOr<bool> RecordReader::Next(std::string* text, int64_t* line) {
  if (!impl_->started) {
    impl_->started = true;
    auto more = impl_->SkipSpace();
    if (!more.ok() || !*more) return more;
    impl_->array = impl_->piece[impl_->at] == '[';
    if (impl_->array) ++impl_->at;
  }
  if (impl_->array) return impl_->NextElement(text, line);
  while (true) {
    auto more = impl_->NextLine(text, line);
    if (!more.ok() || !*more) return more;
    if (text->find_first_not_of(" \t\r") != std::string::npos) return true;
  }
}

}  // namespace rlhf::cli
