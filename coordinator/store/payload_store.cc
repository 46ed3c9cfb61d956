#include "coordinator/store/payload_store.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status_util.h"
#include "coordinator/store/store_decorator.h"

namespace rlhf::coordinator {
namespace {

constexpr uint64_t kHeader = 8;

std::string Frame(absl::string_view bytes) {
  const auto size = static_cast<uint32_t>(bytes.size());
  const uint32_t sum = XXH32(bytes.data(), bytes.size(), 0);
  std::string out(kHeader, '\0');
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<char>(size >> (8 * i));
    out[4 + i] = static_cast<char>(sum >> (8 * i));
  }
  out.append(bytes.data(), bytes.size());
  return out;
}

uint32_t ReadLittleEndian(const char* at) {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<uint8_t>(at[i])) << (8 * i);
  return value;
}

// A file of the folder, closed with its last user.
struct Descriptor {
  explicit Descriptor(int fd) : fd(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { ::close(fd); }
  const int fd;
};
using File = std::shared_ptr<const Descriptor>;

class Segments final : public PayloadStore {
 public:
  static absl::StatusOr<std::unique_ptr<PayloadStore>> Open(const std::string& dir, uint64_t segment_bytes,
                                                            bool claim) {
    RLHF_RETURN_IF_ERROR(MakeDirs(dir));
    auto store = std::make_unique<Segments>(dir, segment_bytes);
    RLHF_ASSIGN_OR_RETURN(const std::vector<uint32_t> found, store->OnDisk());
    // Always a fresh segment: whatever tail a crash left behind in the last one is never written over.
    uint32_t first = found.empty() ? 1 : *std::max_element(found.begin(), found.end()) + 1;
    for (absl::Status made = absl::AlreadyExistsError(""); claim && absl::IsAlreadyExists(made);) {
      made = store->Writable(first).status();
      if (absl::IsAlreadyExists(made)) ++first;
      if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
    }
    absl::MutexLock lock(&store->mu_);
    store->segment_ = first;
    return store;
  }
  Segments(std::string dir, uint64_t segment_bytes) : dir_(std::move(dir)), segment_bytes_(segment_bytes) {}

  v1::PayloadRef Append(std::string bytes) override {
    auto frame = std::make_shared<const std::string>(Frame(bytes));
    absl::MutexLock lock(&mu_);
    if (end_ > 0 && end_ + frame->size() > segment_bytes_) {
      ++segment_;
      end_ = 0;
    }
    v1::PayloadRef ref;
    ref.set_segment(segment_);
    ref.set_offset(end_);
    ref.set_size(static_cast<uint32_t>(bytes.size()));
    end_ += frame->size();
    pending_.emplace(std::pair(ref.segment(), ref.offset()), std::move(frame));
    return ref;
  }

  absl::Status Sync() override {
    absl::MutexLock sync_lock(&sync_mu_);
    std::map<std::pair<uint32_t, uint64_t>, std::shared_ptr<const std::string>> writing;
    {
      absl::MutexLock lock(&mu_);
      writing = pending_;  // stays readable until it is in the file
    }
    if (writing.empty()) return absl::OkStatus();
    RLHF_FAILPOINT("payloads/before_sync");
    std::map<uint32_t, File> touched;
    for (const auto& [place, frame] : writing) {
      File& file = touched[place.first];
      if (file == nullptr) {
        absl::StatusOr<File> made = Writable(place.first);
        // Somebody else made it meanwhile: on a shared folder one of the two does not lead any more.
        if (absl::IsAlreadyExists(made.status())) {
          errno = EEXIST;
          return Failed("make", place.first);
        }
        if (!made.ok()) return made.status();
        file = *std::move(made);
      }
      size_t done = 0;
      while (done < frame->size()) {
        const ssize_t n =
            ::pwrite(file->fd, frame->data() + done, frame->size() - done, static_cast<off_t>(place.second + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return Failed("write", place.first);
        done += static_cast<size_t>(n);
      }
    }
    for (const auto& [segment, file] : touched) {
      if (!RLHF_FAILPOINT_OK("payloads/io_error")) {
        errno = EIO;
        return Failed("fsync", segment);
      }
      if (::fdatasync(file->fd) != 0) return Failed("fsync", segment);
    }
    RLHF_FAILPOINT("payloads/after_sync");
    uint32_t unsealed = 0;
    {
      absl::MutexLock lock(&mu_);
      for (const auto& [place, frame] : writing) pending_.erase(place);
      unsealed = FirstUnsealed();
    }
    absl::MutexLock lock(&files_mu_);
    while (!writable_.empty() && writable_.begin()->first < unsealed) writable_.erase(writable_.begin());
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Read(const v1::PayloadRef& ref) override {
    {
      absl::MutexLock lock(&mu_);
      if (const auto it = pending_.find({ref.segment(), ref.offset()}); it != pending_.end())
        return it->second->substr(kHeader);
    }
    const absl::StatusOr<File> file = Readable(ref.segment());
    if (absl::IsNotFound(file.status())) return Damaged(ref, "its segment is missing");
    if (!file.ok()) return file.status();
    std::string frame(kHeader + ref.size(), '\0');
    size_t done = 0;
    while (done < frame.size()) {
      const ssize_t n =
          ::pread((*file)->fd, frame.data() + done, frame.size() - done, static_cast<off_t>(ref.offset() + done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return Failed("read", ref.segment());  // of the disk: what lies there may be whole
      if (n == 0) return Damaged(ref, "it ends early");
      done += static_cast<size_t>(n);
    }
    if (ReadLittleEndian(frame.data()) != ref.size()) return Damaged(ref, "its size differs");
    if (ReadLittleEndian(frame.data() + 4) != XXH32(frame.data() + kHeader, ref.size(), 0))
      return Damaged(ref, "its checksum differs");
    return frame.substr(kHeader);
  }

  void Roll() override {
    absl::MutexLock lock(&mu_);
    if (end_ == 0) return;
    ++segment_;
    end_ = 0;
  }

  absl::StatusOr<std::vector<uint32_t>> Sealed() override {
    uint32_t unsealed = 0;
    {
      absl::MutexLock lock(&mu_);
      unsealed = FirstUnsealed();
    }
    RLHF_ASSIGN_OR_RETURN(std::vector<uint32_t> segments, OnDisk());
    segments.erase(std::remove_if(segments.begin(), segments.end(), [&](uint32_t s) { return s >= unsealed; }),
                   segments.end());
    return segments;
  }

  absl::StatusOr<uint64_t> Remove(const std::vector<uint32_t>& segments) override {
    uint64_t freed = 0;
    for (const uint32_t segment : segments) {
      std::error_code error;
      const uint64_t size = std::filesystem::file_size(PathOf(segment), error);
      if (error == std::errc::no_such_file_or_directory) continue;
      if (::unlink(PathOf(segment).c_str()) != 0 && errno != ENOENT) return Failed("delete", segment);
      if (!error) freed += size;
    }
    RLHF_RETURN_IF_ERROR(FsyncDir(dir_));
    return freed;
  }

 private:
  std::string PathOf(uint32_t segment) const { return absl::StrFormat("%s/%08u.seg", dir_, segment); }
  absl::Status Failed(absl::string_view what, uint32_t segment) const {
    return WithReason(absl::UnavailableError(
                          absl::StrCat("payloads: cannot ", what, " ", PathOf(segment), ": ", std::strerror(errno))),
                      v1::STORE_UNAVAILABLE);
  }
  absl::Status Damaged(const v1::PayloadRef& ref, absl::string_view how) const {
    return absl::DataLossError(absl::StrCat("payload at ", PathOf(ref.segment()), ":", ref.offset(), " (", ref.size(),
                                            " bytes) is damaged: ", how, "; restore the data folder from a backup"));
  }
  absl::StatusOr<std::vector<uint32_t>> OnDisk() const {
    std::vector<uint32_t> out;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(dir_, error)) {
      uint32_t number = 0;
      if (entry.path().extension() == ".seg" && absl::SimpleAtoi(entry.path().stem().string(), &number))
        out.push_back(number);
    }
    if (error) return absl::UnavailableError(absl::StrCat(dir_, ": ", error.message()));
    return out;
  }
  // Segments before it are sealed.
  uint32_t FirstUnsealed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return pending_.empty() ? segment_ : std::min(segment_, pending_.begin()->first.first);
  }
  // One of this process's own, made the first time. AlreadyExists: somebody else made it.
  absl::StatusOr<File> Writable(uint32_t segment) {
    absl::MutexLock lock(&files_mu_);
    if (const auto it = writable_.find(segment); it != writable_.end()) return it->second;
    const int fd = ::open(PathOf(segment).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST) return absl::AlreadyExistsError(PathOf(segment));
    if (fd < 0) return Failed("make", segment);
    File file = std::make_shared<const Descriptor>(fd);
    RLHF_RETURN_IF_ERROR(FsyncDir(dir_));
    writable_.emplace(segment, file);
    return file;
  }
  // Opened for each read: there may be more segments than a process may have files open.
  absl::StatusOr<File> Readable(uint32_t segment) {
    {
      absl::MutexLock lock(&files_mu_);
      if (const auto it = writable_.find(segment); it != writable_.end()) return it->second;
    }
    const int fd = ::open(PathOf(segment).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return absl::NotFoundError(PathOf(segment));
    if (fd < 0) return Failed("open", segment);
    return std::make_shared<const Descriptor>(fd);
  }

  const std::string dir_;
  const uint64_t segment_bytes_;
  absl::Mutex sync_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // one Sync at a time
  absl::Mutex mu_;
  uint32_t segment_ ABSL_GUARDED_BY(mu_) = 1;
  uint64_t end_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::pair<uint32_t, uint64_t>, std::shared_ptr<const std::string>> pending_ ABSL_GUARDED_BY(mu_);
  absl::Mutex files_mu_;
  std::map<uint32_t, File> writable_ ABSL_GUARDED_BY(files_mu_);  // of this process's that are not sealed
};

// Its own thread makes payloads durable, then hands the batches that were queued on, in order.
class StoreWithPayloads final : public StoreDecorator {
 public:
  StoreWithPayloads(std::unique_ptr<StateStore> store, PayloadStore* payloads)
      : StoreDecorator(std::move(store)), payloads_(payloads), thread_([this] { Run(); }) {}
  ~StoreWithPayloads() override {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
    store_.reset();
  }
  void Enqueue(WriteBatch batch, Committed done) override {
    absl::MutexLock lock(&mu_);
    queue_.emplace_back(std::move(batch), std::move(done));
  }

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !queue_.empty() || stopping_; }
  void Run() {
    absl::Status failure;  // as in the store: once the disk failed, nothing more is acknowledged
    while (true) {
      std::deque<std::pair<WriteBatch, Committed>> items;
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(this, &StoreWithPayloads::HasWork));
        if (queue_.empty()) return;
        items.swap(queue_);
      }
      if (failure.ok()) failure = payloads_->Sync();
      for (auto& [batch, done] : items) {
        if (failure.ok()) {
          store_->Commit(std::move(batch), std::move(done));
        } else {
          done(failure);
        }
      }
    }
  }

  PayloadStore* const payloads_;
  mutable absl::Mutex mu_;
  std::deque<std::pair<WriteBatch, Committed>> queue_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PayloadStore>> OpenPayloadStore(const std::string& dir, uint64_t segment_bytes,
                                                               bool claim) {
  return Segments::Open(dir, segment_bytes, claim);
}

std::unique_ptr<StateStore> WithPayloads(std::unique_ptr<StateStore> store, PayloadStore* payloads) {
  return std::make_unique<StoreWithPayloads>(std::move(store), payloads);
}

}  // namespace rlhf::coordinator
