#include "common/metrics.h"

#include <dirent.h>
#include <unistd.h>

#include <fstream>
#include <utility>
#include <variant>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "common/build_version.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/process.h"

namespace rlhf {
namespace {

using Labels = MetricsRegistry::Labels;

// Fields of /proc/self/stat after the command's closing bracket; the command itself may hold spaces.
std::vector<std::string> ProcessStat() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/self/stat");
  if (!text.ok()) return {};
  const size_t end_of_command = text->rfind(')');
  if (end_of_command == std::string::npos) return {};
  return absl::StrSplit(text->substr(end_of_command + 1), ' ', absl::SkipWhitespace());
}

double Number(const std::vector<std::string>& fields, size_t index) {
  double value = 0;
  if (index < fields.size() && absl::SimpleAtod(fields[index], &value)) return value;
  return 0;
}

double BootTimeSeconds() {
  std::ifstream file("/proc/stat");
  std::string key;
  double value = 0;
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, ' ');
    if (parts.size() == 2 && parts[0] == "btime" && absl::SimpleAtod(parts[1], &value)) return value;
  }
  return 0;
}

double OpenFileDescriptors() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int n = 0;
  while (const dirent* entry = readdir(dir)) n += entry->d_name[0] != '.';
  closedir(dir);
  return n - 1;  // without the one that counted
}

// Positions in ProcessStat(), which begins with field 3 of proc(5).
constexpr size_t kUserTicks = 11, kSystemTicks = 12, kStartTicks = 19, kVirtualBytes = 20, kResidentPages = 21;

}  // namespace

struct MetricsRegistry::Impl {
  template <typename T>
  struct Series {
    prometheus::Family<T>* family = nullptr;
    std::map<Labels, T*> metrics;
  };
  using AnySeries = std::variant<Series<prometheus::Counter>, Series<prometheus::Gauge>, Series<prometheus::Histogram>>;

  template <typename T, typename Builder, typename... Args>
  T& Get(Builder builder, const std::string& name, const std::string& help, const Labels& labels, const Args&... args) {
    absl::MutexLock lock(&mu);
    auto [it, is_new] = families.try_emplace(name, Series<T>{});
    // A name used for two kinds of metric is a programmer's error: std::get throws, at start-up.
    auto& series = std::get<Series<T>>(it->second);
    if (is_new) series.family = &builder.Name(name).Help(help).Register(registry);
    T*& metric = series.metrics[labels];
    if (metric == nullptr) metric = &series.family->Add(labels, args...);
    return *metric;
  }

  mutable absl::Mutex mu;
  prometheus::Registry registry;
  std::map<std::string, AnySeries> families ABSL_GUARDED_BY(mu);
  std::vector<std::function<void()>> refreshers ABSL_GUARDED_BY(mu);
};

MetricsRegistry::MetricsRegistry(const std::string& role) : impl_(std::make_unique<Impl>()) {
  Gauge("rlhf_build_info", "1, with the build's version and the role as labels.",
        {{"version", BuildVersion()}, {"role", role}})
      .Set(1);
  auto& resident = Gauge("process_resident_memory_bytes", "Resident memory size in bytes.");
  auto& virtual_memory = Gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.");
  auto& cpu = Counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.");
  auto& fds = Gauge("process_open_fds", "Number of open file descriptors.");
  auto& clock = Gauge("rlhf_clock_timestamp_seconds", "The process's wall clock, since the Unix epoch, in seconds.");
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
  Gauge("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds.")
      .Set(BootTimeSeconds() + Number(ProcessStat(), kStartTicks) / ticks);
  OnCollect([&resident, &virtual_memory, &cpu, &fds, &clock, ticks, page] {
    clock.Set(absl::ToDoubleSeconds(Clock::Real()->WallNow() - absl::UnixEpoch()));
    const std::vector<std::string> stat = ProcessStat();
    resident.Set(Number(stat, kResidentPages) * page);
    virtual_memory.Set(Number(stat, kVirtualBytes));
    const double seconds = (Number(stat, kUserTicks) + Number(stat, kSystemTicks)) / ticks;
    if (seconds > cpu.Value()) cpu.Increment(seconds - cpu.Value());
    fds.Set(OpenFileDescriptors());
  });
}

MetricsRegistry::~MetricsRegistry() = default;

prometheus::Counter& MetricsRegistry::Counter(const std::string& name, const std::string& help, const Labels& labels) {
  return impl_->Get<prometheus::Counter>(prometheus::BuildCounter(), name, help, labels);
}

prometheus::Gauge& MetricsRegistry::Gauge(const std::string& name, const std::string& help, const Labels& labels) {
  return impl_->Get<prometheus::Gauge>(prometheus::BuildGauge(), name, help, labels);
}

prometheus::Histogram& MetricsRegistry::Histogram(const std::string& name, const std::string& help,
                                                  const std::vector<double>& buckets, const Labels& labels) {
  return impl_->Get<prometheus::Histogram>(prometheus::BuildHistogram(), name, help, labels, buckets);
}

void MetricsRegistry::Remove(const std::string& name, const Labels& labels) {
  absl::MutexLock lock(&impl_->mu);
  const auto it = impl_->families.find(name);
  if (it == impl_->families.end()) return;
  std::visit(
      [&labels](auto& series) {
        for (auto metric = series.metrics.begin(); metric != series.metrics.end();) {
          bool matches = true;
          for (const auto& [key, value] : labels) {
            const auto found = metric->first.find(key);
            matches = matches && found != metric->first.end() && found->second == value;
          }
          if (!matches) {
            ++metric;
            continue;
          }
          series.family->Remove(metric->second);
          metric = series.metrics.erase(metric);
        }
      },
      it->second);
}

void MetricsRegistry::OnCollect(std::function<void()> refresh) {
  absl::MutexLock lock(&impl_->mu);
  impl_->refreshers.push_back(std::move(refresh));
}

std::string MetricsRegistry::Text() const {
  std::vector<std::function<void()>> refreshers;
  {
    absl::MutexLock lock(&impl_->mu);
    refreshers = impl_->refreshers;
  }
  // Not under the lock: a refresher makes and removes series.
  for (const auto& refresh : refreshers) refresh();
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace rlhf
