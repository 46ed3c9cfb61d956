#include "client/cpp/evidence_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "artifact/sample_digest.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::client {
namespace {

nlohmann::ordered_json LineOf(const char* event, const v1::GroupAssignment& group, int64_t step) {
  return {{"event", event},       {"job", group.job_id()},       {"epoch", group.epoch()},
          {"rank", group.rank()}, {"world", group.world_size()}, {"step", step}};
}

}  // namespace

std::string MetricsDigest(const std::map<std::string, double>& metrics) {
  std::string bytes;
  for (const auto& [name, value] : metrics) {
    bytes.append(name).push_back('\0');
    char raw[sizeof(value)];
    std::memcpy(raw, &value, sizeof(value));
    bytes.append(raw, sizeof(value));
  }
  return artifact::Xxh3Hex(bytes.data(), bytes.size());
}

absl::StatusOr<EvidenceFile> EvidenceFile::Open(const std::string& dir, const std::string& name) {
  RLHF_RETURN_IF_ERROR(MakeDirs(dir));
  EvidenceFile file;
  const std::string path = absl::StrCat(dir, "/", name);
  file.fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  return file;
}

EvidenceFile::EvidenceFile(EvidenceFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
EvidenceFile& EvidenceFile::operator=(EvidenceFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
EvidenceFile::~EvidenceFile() {
  if (fd_ >= 0) close(fd_);
}

void EvidenceFile::Append(const std::string& lines) const {
  if (fd_ < 0 || lines.empty()) return;
  if (write(fd_, lines.data(), lines.size()) != static_cast<ssize_t>(lines.size()))
    spdlog::warn("evidence was lost: {}", std::strerror(errno));
}

absl::StatusOr<StepLog> StepLog::Open(const std::string& dir, const std::string& instance) {
  StepLog log;
  if (!dir.empty()) {
    RLHF_ASSIGN_OR_RETURN(log.file_, EvidenceFile::Open(dir, absl::StrCat("steps-", instance, ".jsonl")));
  }
  return log;
}

void StepLog::Trained(const v1::GroupAssignment& group, const StepEvidence& evidence) {
  nlohmann::ordered_json line = LineOf("trained", group, evidence.step);
  line["weights"] = evidence.weights_digest;
  if (!evidence.state_digest.empty()) line["state"] = evidence.state_digest;
  line["metrics"] = evidence.metrics_digest;
  line["batch"] = evidence.batch_digest;
  if (group.rank() == 0) line["samples"] = evidence.samples;
  file_.Append(line.dump() + "\n");
}

void StepLog::Committed(const v1::GroupAssignment& group, const v1::PolicyVersion& version) {
  nlohmann::ordered_json line = LineOf("committed", group, version.step());
  line["lineage"] = version.lineage();
  line["weights"] = version.digest();
  file_.Append(line.dump() + "\n");
}

void StepLog::Refused(const v1::GroupAssignment& group, int64_t step, const std::string& why) {
  nlohmann::ordered_json line = LineOf("refused", group, step);
  line["why"] = why;
  file_.Append(line.dump() + "\n");
}

absl::StatusOr<AcceptedLog> AcceptedLog::Open(const std::string& dir, const std::string& instance) {
  AcceptedLog log;
  if (!dir.empty()) {
    RLHF_ASSIGN_OR_RETURN(log.file_, EvidenceFile::Open(dir, absl::StrCat("accepted-", instance, ".jsonl")));
  }
  return log;
}

void AcceptedLog::Accepted(const v1::SubmitSamplesRequest& request, const v1::SubmitSamplesResponse& response) const {
  if (!file_.is_open()) return;
  std::string lines;
  for (int i = 0; i < std::min(request.samples_size(), response.verdicts_size()); ++i) {
    if (!response.verdicts(i).accepted()) continue;
    const v1::Sample& sample = request.samples(i);
    const nlohmann::ordered_json line = {
        {"event", "accepted"}, {"job", sample.id().job_id()}, {"sample", artifact::BatchLine(sample)}};
    lines += line.dump() + "\n";
  }
  file_.Append(lines);
}

}  // namespace rlhf::client
