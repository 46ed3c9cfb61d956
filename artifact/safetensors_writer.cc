#include "artifact/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

constexpr size_t kAlignment = 8;  // of the data section, as the format's own writer has it

uint64_t BytesOf(const TensorLayout& tensor) {
  uint64_t bytes = static_cast<uint64_t>(DTypeSize(tensor.dtype));
  for (const int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
  return bytes;
}

class FileWriter final : public SafetensorsWriter {
 public:
  explicit FileWriter(std::string path) : path_(std::move(path)), temporary_(absl::StrCat(path_, ".partial")) {}
  ~FileWriter() override {
    if (fd_ < 0) return;
    close(fd_);
    unlink(temporary_.c_str());
  }

  absl::Status Begin(const std::vector<TensorLayout>& layout) {
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) return WriteError(errno, "create", temporary_);
    std::vector<uint64_t> begins;
    const std::string header = SafetensorsHeader(layout, {{"format", "pt"}}, &begins);
    for (size_t i = 0; i < layout.size(); ++i) left_[layout[i].name] = {header.size() + begins[i], BytesOf(layout[i])};
    return WriteAt(0, {reinterpret_cast<const uint8_t*>(header.data()), header.size()});
  }

  absl::Status Write(const std::string& name, absl::Span<const uint8_t> data) override {
    const auto place = left_.find(name);
    if (place == left_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", name, "\" is not in the layout, or was written before"));
    }
    if (data.size() != place->second.bytes) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", name, "\": its shape needs ",
                                                     place->second.bytes, " bytes, found ", data.size()));
    }
    const absl::Status status = WriteAt(place->second.begin, data);
    if (status.ok()) left_.erase(place);
    return status;
  }

  absl::Status Finish() override {
    if (!left_.empty())
      return absl::FailedPreconditionError(
          absl::StrCat(path_, ": tensor \"", left_.begin()->first, "\" was not written"));
    absl::Status status;
    if (close(std::exchange(fd_, -1)) != 0) status = WriteError(errno, "close", temporary_);
    if (status.ok() && rename(temporary_.c_str(), path_.c_str()) != 0)
      status = WriteError(errno, "rename into place", path_);
    if (!status.ok()) unlink(temporary_.c_str());
    return status;
  }

 private:
  struct Place {
    uint64_t begin = 0, bytes = 0;
  };

  absl::Status WriteAt(uint64_t begin, absl::Span<const uint8_t> data) {
    while (!data.empty()) {
      const ssize_t n = pwrite(fd_, data.data(), data.size(), static_cast<off_t>(begin));
      if (n < 0) {
        if (errno == EINTR) continue;
        return WriteError(errno, "write", temporary_);
      }
      data.remove_prefix(static_cast<size_t>(n));
      begin += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

  const std::string path_, temporary_;
  int fd_ = -1;
  std::map<std::string, Place> left_;
};

}  // namespace

std::string SafetensorsHeader(const std::vector<TensorLayout>& layout,
                              const std::map<std::string, std::string>& metadata, std::vector<uint64_t>* begins) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorLayout& tensor : layout) {
    const uint64_t bytes = BytesOf(tensor);
    header[tensor.name] = {
        {"dtype", DTypeName(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    begins->push_back(offset);
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  const uint64_t size = text.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + text;
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                             const std::vector<TensorLayout>& layout) {
  auto writer = std::make_unique<FileWriter>(path);
  if (const absl::Status status = writer->Begin(layout); !status.ok()) return status;
  return writer;
}

}  // namespace rlhf::artifact
