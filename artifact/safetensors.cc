#include "artifact/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/safetensors_writer.h"
#include "common/durable_file.h"

namespace rlhf::artifact {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kHeaderLengthBytes = 8;
constexpr size_t kMaxDimensions = 16;  // far more than any tensor has

struct DTypeRow {
  DType dtype;
  const char* name;
  int64_t size;
};
constexpr DTypeRow kDTypes[] = {{DType::kF32, "F32", 4},  {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
                                {DType::kI64, "I64", 8},  {DType::kI32, "I32", 4}, {DType::kU8, "U8", 1},
                                {DType::kBool, "BOOL", 1}};

// A tensor as the header states it.
struct RawTensor {
  std::optional<std::string> dtype;
  std::optional<std::vector<uint64_t>> shape, offsets;
};

// Reads the header as it is parsed: no tree of it is built, since a hostile one would take ten times its size, and
// since the library's parser with a callback looks through all members again after each.
class HeaderReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Take = std::function<absl::Status(const std::string& name, const RawTensor& tensor)>;
  HeaderReader(Take take, std::map<std::string, std::string>* metadata) : take_(std::move(take)), metadata_(metadata) {}

  const absl::Status& status() const { return status_; }

  bool null() override { return Other(); }
  bool boolean(bool) override { return Other(); }
  bool number_integer(number_integer_t) override { return Other(); }
  bool number_float(number_float_t, const string_t&) override { return Other(); }
  bool binary(binary_t&) override { return Other(); }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ != kArray) return Other();
    if (array_ == nullptr) return true;
    if (array_->size() == kMaxDimensions)
      return Fail(field_, absl::StrCat("expected at most ", kMaxDimensions, " numbers"));
    array_->push_back(value);
    return true;
  }
  bool string(string_t& text) override {
    if (depth_ != kEntry) return Other();
    if (in_metadata_) {
      (*metadata_)[field_] = text;
    } else if (field_ == "dtype") {
      tensor_.dtype = text;
    } else {
      return Other();
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (depth_ >= kEntry) return Other() && Fail(field_, "is not known");
    if (depth_ == kHeader) {
      tensor_ = RawTensor();
      in_metadata_ = name_ == kMetadata;
      if (in_metadata_ && std::exchange(had_metadata_, true)) return Fail("", "appears twice");
    }
    ++depth_;
    return true;
  }
  bool end_object() override {
    if (depth_-- == kEntry && !in_metadata_) status_ = take_(name_, tensor_);
    return status_.ok();
  }
  bool start_array(std::size_t) override {
    if (depth_ != kEntry || in_metadata_ || field_ == "dtype") return Other();
    array_ = field_ == "shape"          ? &tensor_.shape.emplace()
             : field_ == "data_offsets" ? &tensor_.offsets.emplace()
                                        : nullptr;
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    (depth_ == kHeader ? name_ : field_) = key;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::json::exception&) override { return false; }

 private:
  // How deep in {"NAME": {"FIELD": [number, …]}}.
  enum { kOutside, kHeader, kEntry, kArray };

  bool Fail(absl::string_view field, absl::string_view problem) {
    status_ =
        absl::InvalidArgumentError(absl::StrCat(in_metadata_ ? "" : "tensor ", "\"", name_.substr(0, 200),
                                                "\": ", field.substr(0, 200), field.empty() ? "" : ": ", problem));
    return false;
  }
  // A value that does not belong where it is.
  bool Other() {
    if (depth_ == kOutside) return false;
    if (depth_ == kHeader) return Fail("", "expected an object with dtype, shape and data_offsets");
    if (in_metadata_) return Fail(field_, "expected a string");
    if (field_ == "dtype") return Fail(field_, "expected a string");
    if (field_ == "shape") return Fail(field_, "expected an array of whole numbers of at least 0");
    if (field_ == "data_offsets") return Fail(field_, "expected two whole numbers");
    return depth_ == kEntry || Fail(field_, "is not known");  // readers of the format pass unknown fields over
  }

  static constexpr char kMetadata[] = "__metadata__";
  Take take_;
  std::map<std::string, std::string>* metadata_;
  absl::Status status_;
  int depth_ = kOutside;
  bool in_metadata_ = false, had_metadata_ = false;
  std::string name_, field_;
  RawTensor tensor_;
  std::vector<uint64_t>* array_ = nullptr;
};

class OpenFile : public SafetensorsFile {
 public:
  OpenFile(std::string path, int fd, size_t size) : path_(std::move(path)), fd_(fd), size_(size) {}
  ~OpenFile() override { close(fd_); }
  const std::map<std::string, TensorInfo>& tensors() const override { return tensors_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  absl::Status Read(const TensorInfo& info, uint64_t offset, absl::Span<uint8_t> to) const override {
    return ReadAt(data_begin_ + info.begin + offset, to.data(), to.size());
  }

  absl::Status Parse();

 private:
  absl::Status ReadAt(uint64_t offset, void* to, size_t size) const;
  absl::Status TakeTensor(const std::string& name, const RawTensor& raw);

  const std::string path_;
  const int fd_;
  const size_t size_;
  uint64_t data_begin_ = 0;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

absl::Status OpenFile::ReadAt(uint64_t offset, void* to, size_t size) const {
  auto* at = static_cast<uint8_t*>(to);
  while (size > 0) {
    const ssize_t n = pread(fd_, at, size, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read ", path_));
    if (n == 0) {
      return absl::DataLossError(absl::StrCat(path_, ": expected ", size_, " bytes, found ", offset,
                                              ": it was cut short while it was read; restore the file"));
    }
    at += n;
    offset += static_cast<uint64_t>(n);
    size -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status OpenFile::TakeTensor(const std::string& name, const RawTensor& raw) {
  const auto bad = [&](const std::string& problem) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name.substr(0, 200), "\": ", problem));
  };
  if (!raw.dtype || !raw.shape || !raw.offsets) return bad("expected an object with dtype, shape and data_offsets");
  TensorInfo info;
  const auto* row =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](const DTypeRow& r) { return *raw.dtype == r.name; });
  if (row == std::end(kDTypes)) {
    return bad(
        absl::StrCat("expected a dtype of F32, F16, BF16, I64, I32, U8 or BOOL, found ", raw.dtype->substr(0, 80)));
  }
  info.dtype = row->dtype;
  uint64_t bytes = static_cast<uint64_t>(row->size);
  for (const uint64_t dimension : *raw.shape) {
    if (dimension > static_cast<uint64_t>(INT64_MAX) || __builtin_mul_overflow(bytes, dimension, &bytes))
      return bad("the product of its shape overflows");
    info.shape.push_back(static_cast<int64_t>(dimension));
  }
  if (raw.offsets->size() != 2) return bad("expected data_offsets to be two whole numbers");
  info.begin = (*raw.offsets)[0];
  info.end = (*raw.offsets)[1];
  const uint64_t available = size_ - data_begin_;
  if (info.begin > info.end || info.end > available) {
    return bad(absl::StrCat("offsets [", info.begin, ", ", info.end, "] lie outside the file's ", available,
                            " bytes of data; is the file truncated?"));
  }
  if (info.end - info.begin != bytes)
    return bad(absl::StrCat("its shape needs ", bytes, " bytes, its offsets span ", info.end - info.begin));
  // A second one would silently replace the first.
  if (!tensors_.emplace(name, std::move(info)).second) return bad("appears twice");
  return absl::OkStatus();
}

absl::Status OpenFile::Parse() {
  const auto bad = [&](absl::string_view problem) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": ", problem));
  };
  if (size_ < kHeaderLengthBytes)
    return bad("not a safetensors file: shorter than its header length; is it truncated?");
  uint64_t header_size = 0;
  if (absl::Status status = ReadAt(0, &header_size, kHeaderLengthBytes); !status.ok()) return status;
  if (header_size > kMaxHeader)
    return bad(absl::StrCat("header of ", header_size, " bytes; at most ", kMaxHeader, " are allowed"));
  if (header_size > size_ - kHeaderLengthBytes)
    return bad("the header reaches beyond the file's end; is it truncated?");
  data_begin_ = kHeaderLengthBytes + header_size;
  std::string header(header_size, '\0');
  if (absl::Status status = ReadAt(kHeaderLengthBytes, header.data(), header.size()); !status.ok()) return status;
  HeaderReader reader([&](const std::string& name, const RawTensor& tensor) { return TakeTensor(name, tensor); },
                      &metadata_);
  if (!nlohmann::json::sax_parse(header, &reader))
    return bad(reader.status().ok() ? "the header is not a JSON object" : reader.status().message());
  std::vector<std::pair<uint64_t, const std::pair<const std::string, TensorInfo>*>> order;
  for (const auto& entry : tensors_) order.emplace_back(entry.second.begin, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : a.second->second.end < b.second->second.end;
  });
  uint64_t expected = 0;
  for (const auto& [at, entry] : order) {
    if (at != expected) {
      return bad(absl::StrCat("tensor \"", entry->first, "\" begins at ", at, " where ", expected, " was expected (",
                              at < expected ? "it overlaps another" : "there is a gap before it", ")"));
    }
    expected = entry->second.end;
  }
  if (data_begin_ + expected != size_)
    return bad(absl::StrCat("tensors end at ", expected, " but the data section has ", size_ - data_begin_, " bytes"));
  return absl::OkStatus();
}

}  // namespace

int64_t DTypeSize(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row.size;
  }
  return 0;
}

const char* DTypeName(DType dtype) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "?";
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", std::strerror(errno)));
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) {
    close(fd);
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a safetensors file, found an empty or special one"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  auto file = std::make_unique<OpenFile>(path, fd, size);
  if (const absl::Status status = file->Parse(); !status.ok()) return status;
  return file;
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata, Durability durability) {
  std::vector<TensorLayout> layout;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t bytes = static_cast<uint64_t>(DTypeSize(tensor.dtype));
    for (const int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
    if (bytes != tensor.data.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor \"", tensor.name, "\": its shape needs ", bytes, " bytes, found ", tensor.data.size()));
    }
    layout.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  std::vector<uint64_t> begins;
  const std::string header = SafetensorsHeader(layout, metadata, &begins);
  std::vector<absl::string_view> parts{header};
  for (const TensorToWrite& tensor : tensors)
    parts.emplace_back(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  return WriteFileParts(path, parts, durability);
}

absl::StatusOr<ModelWeights> OpenModelWeights(const std::string& model_dir) {
  namespace fs = std::filesystem;
  ModelWeights weights;
  std::vector<std::string> names;
  const fs::path index = fs::path(model_dir) / "model.safetensors.index.json";
  std::map<std::string, std::string> where;
  std::error_code error;
  if (fs::exists(fs::path(model_dir) / "model.safetensors", error)) {
    names.push_back("model.safetensors");
  } else if (fs::exists(index, error)) {
    auto text = ReadFile(index.string());
    if (!text.ok()) return text.status();
    const auto json = nlohmann::json::parse(*text, nullptr, false);
    if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(index.string(), ": expected an object with weight_map"));
    }
    std::set<std::string> shards;
    for (const auto& [tensor, shard] : json["weight_map"].items()) {
      if (!shard.is_string() || fs::path(shard.get<std::string>()).filename() != shard.get<std::string>()) {
        return absl::InvalidArgumentError(
            absl::StrCat(index.string(), ": weight_map.", tensor, ": expected the name of a file beside the index"));
      }
      shards.insert(shard.get<std::string>());
      where[tensor] = shard.get<std::string>();
    }
    names.assign(shards.begin(), shards.end());
  } else {
    return absl::NotFoundError(
        absl::StrCat(model_dir, ": expected model.safetensors or model.safetensors.index.json, found neither"));
  }
  std::map<std::string, const SafetensorsFile*> holder;  // by shard
  for (const std::string& name : names) {
    auto file = SafetensorsFile::Open((fs::path(model_dir) / name).string());
    if (!file.ok()) return file.status();
    for (const auto& [tensor, info] : (*file)->tensors()) {
      if (!weights.tensors.emplace(tensor, ModelWeights::Entry{file->get(), &info}).second) {
        return absl::InvalidArgumentError(absl::StrCat(model_dir, ": tensor \"", tensor, "\" is in two shards"));
      }
    }
    holder[name] = file->get();
    weights.files.push_back(*std::move(file));
  }
  for (const auto& [tensor, shard] : where) {
    const auto found = weights.tensors.find(tensor);
    if (found == weights.tensors.end() || found->second.file != holder[shard]) {
      return absl::InvalidArgumentError(
          absl::StrCat(model_dir, ": the index names tensor \"", tensor, "\" in ", shard, ", where it is not"));
    }
  }
  return weights;
}

}  // namespace rlhf::artifact
