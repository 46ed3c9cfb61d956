// service backup and restore.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "cli/backup_files.h"
#include "cli/commands/commands.h"
#include "cli/output.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

constexpr absl::Duration kBackup = absl::Hours(6);

int Backup(const ConnectionFlags& connection, const std::string& out) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto writer = BackupWriter::Begin(out);
  if (!writer.ok()) return Fail(Here(writer.status()));
  const auto context = CallContext(kBackup);
  const auto stub = v1::AdminService::NewStub(*channel);
  const auto reader = stub->Backup(context.get(), v1::BackupRequest());
  v1::BackupChunk chunk;
  absl::Status status;
  while (status.ok() && reader->Read(&chunk)) status = (*writer)->Take(chunk);
  if (!status.ok()) context->TryCancel();
  const absl::Status called = FromGrpc(reader->Finish());
  status = status.ok() ? called : Here(status);
  if (!status.ok()) return Fail(status);
  const auto manifest = (*writer)->Finish();
  if (!manifest.ok()) return Fail(Here(manifest.status()));
  if (connection.output == "json") {
    PrintJson(*manifest);
  } else {
    uint64_t bytes = 0;
    for (const v1::FileEntry& file : manifest->files()) bytes += file.size();
    std::printf("%s: %d files, %.1f MB\n", out.c_str(), manifest->files_size(), static_cast<double>(bytes) / 1e6);
  }
  return v1::EXIT_OK;
}

int Restore(const std::string& from, const std::string& data_dir) {
  const absl::Status status = RestoreBackup(from, data_dir);
  if (!status.ok()) return Fail(Here(status));
  std::printf("%s holds the backup; start the coordinator with --data-dir %s\n", data_dir.c_str(), data_dir.c_str());
  return v1::EXIT_OK;
}

}  // namespace

CLI::App* Subcommand(CLI::App& app, const std::string& name, const std::string& description) {
  const auto found = app.get_subcommands([&name](const CLI::App* sub) { return sub->get_name() == name; });
  if (!found.empty()) return found.front();
  CLI::App* added = app.add_subcommand(name, description);
  added->require_subcommand(1);
  return added;
}

void AddServiceCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  struct Flags {
    std::string out, from, data_dir;
  };
  const auto flags = std::make_shared<Flags>();
  CLI::App* service = Subcommand(app, "service", "The service as a whole");
  auto* backup = service->add_subcommand("backup", "Copy the coordinator's rows and payloads, while jobs run");
  backup->add_option("--out", flags->out, "Folder to make; it must not exist")->required();
  backup->callback([=, &connection] { *run = [=, &connection] { return Backup(connection, flags->out); }; });
  auto* restore =
      service->add_subcommand("restore", "Make a data folder of a backup, for a coordinator not yet started");
  restore->add_option("--from", flags->from, "The backup's folder")->required();
  restore->add_option("--data-dir", flags->data_dir, "Data folder to make; it must not exist or be empty")->required();
  restore->callback([=] { *run = [=] { return Restore(flags->from, flags->data_dir); }; });
}

}  // namespace rlhf::cli
