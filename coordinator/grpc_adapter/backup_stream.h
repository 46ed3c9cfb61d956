// AdminService.Backup: a staged backup, file by file in bounded chunks, then the manifest.
#pragma once

#include <fstream>
#include <memory>
#include <string>

#include "artifact/digest.h"
#include "coordinator/backup.h"
#include "coordinator/grpc_adapter/loop_stream.h"
#include "rlhf/v1/admin_service.pb.h"

namespace rlhf::coordinator {

class BackupStream final : public LoopStream<v1::BackupChunk> {
 public:
  BackupStream(const Edge& edge, Caller caller) : LoopStream(edge), caller_(std::move(caller)) {}

 private:
  // What the background thread works on; one task at a time.
  struct Reader {
    std::unique_ptr<StagedBackup> staged;
    size_t next = 0;  // file
    std::ifstream file;
    uint64_t left = 0;
    bool in_file = false;
    std::unique_ptr<artifact::Sha256> sha256;
    v1::BackupManifest manifest;
  };

  void Pump() override;
  void Ended() override;
  void Stage();
  void ReadNext();
  static absl::StatusOr<v1::BackupChunk> NextChunk(Reader& reader);

  const Caller caller_;
  std::shared_ptr<Reader> reader_;
  bool asked_ = false, busy_ = false, finished_ = false;
};

}  // namespace rlhf::coordinator
