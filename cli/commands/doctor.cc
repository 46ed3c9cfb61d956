// doctor: what is wrong with this machine or the connection, and what to do about it.
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/certificate_check.h"
#include "cli/commands/commands.h"
#include "cli/output.h"
#include "common/process.h"
#include "common/status_util.h"
#include "rlhf/v1/admin_service.grpc.pb.h"
#include "rlhf/v1/oversight_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

enum class Verdict { kOk, kWarning, kBad };
struct Finding {
  Verdict verdict;
  std::string what, found, next;
};

struct DoctorFlags {
  std::string dir = ".";
};

constexpr uint64_t kGigabyte = 1'000'000'000;

void CheckDisk(const std::string& what, const std::string& path, uint64_t wanted, std::vector<Finding>* findings) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) {
    findings->push_back({Verdict::kWarning, what, absl::StrCat("cannot look at ", path), "name another with --dir"});
    return;
  }
  const uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  const bool enough = free >= wanted;
  findings->push_back({enough ? Verdict::kOk : Verdict::kWarning, what, absl::StrCat(Bytes(free), " free in ", path),
                       enough ? "" : absl::StrCat("expected ", Bytes(wanted), " or more: free some space")});
}

void CheckBinaries(std::vector<Finding>* findings) {
  std::error_code error;
  const auto dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::string missing;
  for (const char* name : {"rlhf-coordinator", "rlhf-rollout-worker", "rlhf-reward-server", "rlhf-learner"}) {
    if (access((dir / name).c_str(), X_OK) != 0) absl::StrAppend(&missing, missing.empty() ? "" : ", ", name);
  }
  findings->push_back({missing.empty() ? Verdict::kOk : Verdict::kWarning, "binaries of the roles",
                       missing.empty() ? dir.string() : absl::StrCat("not beside rlhfctl: ", missing),
                       missing.empty() ? "" : "needed for rlhfctl up only: build or install them, or give --bin-dir"});
}

void CheckGpu(std::vector<Finding>* findings) {
  int gpus = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    (void)entry;
    ++gpus;
  }
  findings->push_back({Verdict::kOk, "GPUs",
                       gpus > 0 ? absl::StrCat(gpus, " with NVIDIA's driver") : "none; roles run on the CPU", ""});
  if (gpus == 0) return;
  void* const nccl = dlopen("libnccl.so.2", RTLD_LAZY | RTLD_LOCAL);
  findings->push_back({nccl != nullptr ? Verdict::kOk : Verdict::kWarning, "NCCL",
                       nccl != nullptr ? "libnccl.so.2" : "not found by the loader",
                       nccl != nullptr ? "" : "learners with several ranks need it: install NCCL 2.28"});
  if (nccl != nullptr) dlclose(nccl);
}

void CheckFiles(std::vector<Finding>* findings) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const bool enough = limit.rlim_max >= 4096;  // which is as far as the service's programs raise it
  findings->push_back({enough ? Verdict::kOk : Verdict::kWarning, "open files",
                       absl::StrCat("at most ", limit.rlim_max),
                       enough ? "" : "a coordinator of a large fleet needs more: ulimit -Hn 65536"});
}

void CheckCoordinator(const ConnectionFlags& connection, std::vector<Finding>* findings) {
  const auto channel = Connect(connection);
  if (!channel.ok()) {
    findings->push_back(
        {Verdict::kWarning, "coordinator", std::string(channel.status().message()), "rlhfctl up starts one"});
    return;
  }
  v1::ServiceState state;
  const auto context = CallContext(absl::Seconds(5));
  const absl::Time asked = absl::Now();
  const absl::Status status = FromGrpc(
      v1::OversightService::NewStub(*channel)->GetServiceState(context.get(), v1::GetServiceStateRequest(), &state));
  if (!status.ok()) {
    findings->push_back({Verdict::kBad, "coordinator", status.ToString(),
                         "check the address, --ca and the token; `rlhfctl up` starts one here"});
    return;
  }
  const double ms = absl::ToDoubleMilliseconds(absl::Now() - asked);
  findings->push_back({Verdict::kOk, "coordinator",
                       absl::StrCat("version ", state.build_version(), ", answers in ", Number(ms), " ms",
                                    state.halted() ? ", HALTED" : ""),
                       ""});
  const bool close =
      state.protocol_version() + 1 >= kProtocolVersion && state.protocol_version() <= kProtocolVersion + 1;
  findings->push_back({close ? Verdict::kOk : Verdict::kBad, "protocol",
                       absl::StrCat("ours ", kProtocolVersion, ", the coordinator's ", state.protocol_version()),
                       close ? "" : "upgrade the older side; the coordinator first"});
  v1::ListWorkersRequest request;
  request.mutable_page()->set_page_size(1000);
  v1::ListWorkersResponse workers;
  const auto again = CallContext(absl::Seconds(5));
  if (!v1::AdminService::NewStub(*channel)->ListWorkers(again.get(), request, &workers).ok()) return;
  int lost = 0;
  for (const v1::Worker& worker : workers.workers()) lost += worker.state() == v1::LOST;
  findings->push_back({lost == 0 ? Verdict::kOk : Verdict::kWarning, "fleet",
                       absl::StrCat(workers.workers_size(), " processes, ", lost, " lost"),
                       lost == 0 ? "" : "rlhfctl workers list names them; their logs say why"});
}

void CheckCertificate(const ConnectionFlags& connection, std::vector<Finding>* findings) {
  const absl::StatusOr<std::string> file = CaFileOf(connection);
  if (!file.ok() || file->empty()) return;
  const absl::StatusOr<absl::Time> ends = ExpiryOfFile(*file);
  if (!ends.ok()) {
    findings->push_back(
        {Verdict::kBad, "CA certificate", std::string(ends.status().message()), "rlhfctl pki init makes one"});
    return;
  }
  const absl::Duration left = *ends - absl::Now();
  const bool fine = left > absl::Hours(24 * 14);
  // A clock that is off by more than a certificate's life shows here too.
  findings->push_back({fine                          ? Verdict::kOk
                       : left > absl::ZeroDuration() ? Verdict::kWarning
                                                     : Verdict::kBad,
                       "CA certificate",
                       absl::StrCat("ends in ", absl::ToInt64Hours(left) / 24, " days, by this machine's clock (",
                                    absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone()), ")"),
                       fine ? "" : "renew it (rlhfctl pki init), or set the clock"});
}

int Doctor(const ConnectionFlags& connection, const DoctorFlags& flags) {
  std::vector<Finding> findings;
  CheckBinaries(&findings);
  CheckDisk("disk", flags.dir, 10 * kGigabyte, &findings);
  CheckDisk("shared memory", "/dev/shm", kGigabyte, &findings);
  CheckFiles(&findings);
  CheckGpu(&findings);
  CheckCertificate(connection, &findings);
  CheckCoordinator(connection, &findings);
  Table table({"", "WHAT", "FOUND", "DO"});
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  bool bad = false;
  for (const Finding& finding : findings) {
    const char* mark = finding.verdict == Verdict::kOk        ? "ok"
                       : finding.verdict == Verdict::kWarning ? "warning"
                                                              : "BAD";
    bad = bad || finding.verdict == Verdict::kBad;
    table.Row({mark, finding.what, finding.found, finding.next});
    json.push_back({{"verdict", absl::AsciiStrToLower(mark)},
                    {"what", finding.what},
                    {"found", finding.found},
                    {"do", finding.next}});
  }
  const std::string text = connection.output == "table" ? table.Text() : json.dump(1) + "\n";  // JSON is YAML too
  std::fputs(text.c_str(), stdout);
  return bad ? v1::EXIT_ERROR : v1::EXIT_OK;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<DoctorFlags>();
  auto* doctor = app.add_subcommand("doctor", "Look at this machine and the connection; exits 1 when something is bad");
  doctor->add_option("--dir", flags->dir, "Where state would go")->capture_default_str();
  doctor->callback([=, &connection] { *run = [=, &connection] { return Doctor(connection, *flags); }; });
}

}  // namespace rlhf::cli
