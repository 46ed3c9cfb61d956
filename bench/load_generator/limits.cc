#include "bench/load_generator/limits.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cpp/channel.h"
#include "rlhf/v1/fleet_service.grpc.pb.h"

namespace rlhf::bench {
namespace {

constexpr absl::Duration kFor = absl::Seconds(2);

// Appends of `block` bytes, each followed by a sync, per second.
absl::StatusOr<double> SyncedAppends(const std::string& file, size_t block) {
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("cannot write ", file));
  const std::string bytes(block, 'x');
  const absl::Time started = absl::Now();
  int64_t done = 0;
  while (absl::Now() - started < kFor) {
    if (write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) || fdatasync(fd) != 0) {
      close(fd);
      return absl::UnavailableError(absl::StrCat("cannot append to ", file));
    }
    ++done;
  }
  close(fd);
  unlink(file.c_str());
  return static_cast<double>(done) / absl::ToDoubleSeconds(absl::Now() - started);
}

}  // namespace

absl::StatusOr<DiskLimits> MeasureDisk(const std::string& dir) {
  DiskLimits limits;
  const absl::StatusOr<double> large = SyncedAppends(dir + "/disk-large", 1 << 20);
  if (!large.ok()) return large.status();
  const absl::StatusOr<double> small = SyncedAppends(dir + "/disk-small", 4096);
  if (!small.ok()) return small.status();
  limits.append_mb_per_second = *large;
  limits.syncs_per_second = *small;
  return limits;
}

absl::StatusOr<double> MeasureRefusedSubmits(const std::vector<std::shared_ptr<grpc::Channel>>& connections,
                                             int response_tokens) {
  v1::SubmitSamplesRequest request;
  request.set_session_id("nobody");
  v1::Sample& sample = *request.add_samples();
  for (int i = 0; i < response_tokens; ++i) {
    sample.add_response_tokens(1000 + i * 104'729 % 100'000);
    sample.add_behaviour_log_probs(-0.5f);
  }
  sample.set_response_text(std::string(static_cast<size_t>(response_tokens) * 4, 'x'));
  std::atomic<int64_t> calls{0}, wrong{0};
  const absl::Time until = absl::Now() + kFor;
  std::vector<std::thread> threads;
  for (const auto& channel : connections) {
    threads.emplace_back([&, channel] {
      const auto stub = v1::FleetService::NewStub(channel);
      while (absl::Now() < until) {
        v1::SubmitSamplesResponse response;
        const auto context = client::MakeContext(absl::Seconds(10));
        const grpc::Status status = stub->SubmitSamples(context.get(), request, &response);
        ++(status.error_code() == grpc::StatusCode::NOT_FOUND ? calls : wrong);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (wrong > 0) return absl::InternalError("expected NOT_FOUND for an unknown session, found something else");
  return static_cast<double>(calls) / absl::ToDoubleSeconds(kFor);
}

}  // namespace rlhf::bench
