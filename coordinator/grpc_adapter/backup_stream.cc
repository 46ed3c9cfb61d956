#include "coordinator/grpc_adapter/backup_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/build_version.h"
#include "common/process.h"
#include "common/status_util.h"
#include "coordinator/timestamps.h"

namespace rlhf::coordinator {
namespace {

constexpr uint64_t kChunk = 1 << 20;

}  // namespace

void BackupStream::Pump() {
  if (busy_) return;
  if (!asked_) {
    asked_ = true;
    return Stage();
  }
  if (finished_) return End(absl::OkStatus());
  ReadNext();
}

// Its copy of the rows is a large file, whose removal takes a second and more.
void BackupStream::Ended() {
  edge_.background->Run([reader = std::exchange(reader_, nullptr)] {});
}

void BackupStream::Stage() {
  if (absl::Status status = edge_.Admit(caller_, "*"); !status.ok()) return End(status);
  busy_ = true;
  WriteBatch batch;
  edge_.oversight->Audit(caller_.subject, "service.backup", "service", "allowed", {}, &batch);
  edge_.store->Commit(std::move(batch), [weak = weak_from_this(), loop = edge_.loop, background = edge_.background,
                                         store = edge_.store, dir = edge_.data_dir, reserve = edge_.min_free_bytes,
                                         now = edge_.loop->clock().WallNow()](absl::Status status) {
    background->Run([weak, loop, background, store, dir, reserve, now, status]() mutable {
      auto reader = std::make_shared<Reader>();
      if (status.ok()) {
        absl::StatusOr<std::unique_ptr<StagedBackup>> staged = StagedBackup::Make(store, dir, reserve);
        status = staged.status();
        if (staged.ok()) reader->staged = *std::move(staged);
      }
      *reader->manifest.mutable_taken_at() = ToTimestamp(now);
      reader->manifest.set_build_version(BuildVersion());
      reader->manifest.set_schema_version(kSchemaVersion);
      loop->Post([weak, background, reader = std::move(reader), status]() mutable {
        const auto stream = std::static_pointer_cast<BackupStream>(weak.lock());
        if (stream == nullptr || stream->ended()) return background->Run([reader = std::move(reader)] {});
        if (!status.ok()) return stream->End(status);
        stream->reader_ = std::move(reader);
        stream->busy_ = false;
        stream->Wake();
      });
    });
  });
}

void BackupStream::ReadNext() {
  busy_ = true;
  edge_.background->Run([weak = weak_from_this(), loop = edge_.loop, reader = reader_] {
    absl::StatusOr<v1::BackupChunk> chunk = NextChunk(*reader);
    loop->Post([weak, chunk = std::move(chunk)]() mutable {
      const auto stream = std::static_pointer_cast<BackupStream>(weak.lock());
      if (stream == nullptr || stream->ended()) return;
      if (!chunk.ok()) return stream->End(chunk.status());
      stream->busy_ = false;
      stream->finished_ = chunk->has_manifest();
      stream->Write(*std::move(chunk));
    });
  });
}

absl::StatusOr<v1::BackupChunk> BackupStream::NextChunk(Reader& reader) {
  v1::BackupChunk chunk;
  const auto& files = reader.staged->files();
  if (!reader.in_file) {
    if (reader.next == files.size()) {
      *chunk.mutable_manifest() = reader.manifest;
      return chunk;
    }
    const StagedBackup::File& file = files[reader.next];
    reader.file = std::ifstream(absl::StrCat(reader.staged->dir(), "/", file.path), std::ios::binary);
    reader.left = file.size;
    reader.sha256 = std::make_unique<artifact::Sha256>();
    reader.in_file = true;
    chunk.mutable_file()->set_path(file.path);
    chunk.mutable_file()->set_size(file.size);
    v1::FileEntry* entry = reader.manifest.add_files();
    *entry = chunk.file();
    return chunk;
  }
  std::string bytes(std::min(kChunk, reader.left), '\0');
  reader.file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (static_cast<uint64_t>(reader.file.gcount()) != bytes.size()) {
    return absl::UnavailableError(
        absl::StrCat("backup: cannot read ", reader.staged->dir(), "/", files[reader.next].path));
  }
  reader.sha256->Update(bytes);
  reader.left -= bytes.size();
  if (reader.left == 0) {
    reader.manifest.mutable_files(static_cast<int>(reader.next))->set_sha256(reader.sha256->FinishHex());
    reader.in_file = false;
    ++reader.next;
  }
  chunk.set_data(std::move(bytes));
  return chunk;
}

}  // namespace rlhf::coordinator
