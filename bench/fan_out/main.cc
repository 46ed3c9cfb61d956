// rlhf-fan-out: how long weights would take to many rollout workers; a table in Markdown. A simulation: no byte moves.
#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/fan_out/simulation.h"
#include "common/process.h"

int main(int argc, char** argv) {
  rlhf::BeginProcess();
  CLI::App app{"rlhf-fan-out: a simulation, in virtual time, of weights on their way to many rollout workers"};
  std::vector<int> workers = {1, 8, 64, 512}, degrees = {0, 1, 2, 3, 4};
  std::vector<double> links = {10, 100}, sizes = {1, 14};
  rlhf::bench::FanOutNetwork network;
  double verify_gigabytes = 5, block_megabytes = 64;
  app.add_option("--workers", workers)->check(CLI::Range(1, 100'000))->capture_default_str();
  app.add_option("--degrees", degrees, "Workers that a process sends to (--weights-fan-out); 0: the learner to all")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_option("--gbit", links, "Of each process's link")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--gigabytes", sizes, "Of the weights")->check(CLI::Range(0.001, 10'000.0))->capture_default_str();
  app.add_option("--verify", verify_gigabytes, "Gigabytes that a worker verifies a second")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--block-megabytes", block_megabytes, "What is verified, and sent on, at once")
      ->check(CLI::Range(0.1, 10'000.0))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  network.verify_gigabyte = absl::Seconds(1 / verify_gigabytes);
  network.block_bytes = static_cast<uint64_t>(block_megabytes * 1e6);

  std::string header = "| weights | link | workers |", line = "| --- | --- | ---: |";
  for (const int degree : degrees) {
    absl::StrAppend(&header, degree == 0 ? " learner alone |" : absl::StrCat(" degree ", degree, " (depth) |"));
    absl::StrAppend(&line, " ---: |");
  }
  std::printf("%s\n%s\n", header.c_str(), line.c_str());
  for (const double size : sizes) {
    for (const double link : links) {
      for (const int count : workers) {
        network.gbit_per_second = link;
        std::string row = absl::StrFormat("| %g GB | %g Gbit/s | %d |", size, link, count);
        for (const int degree : degrees) {
          const rlhf::bench::FanOutTimes times =
              rlhf::bench::SimulateFanOut(count, degree, static_cast<uint64_t>(size * 1e9), network);
          absl::StrAppendFormat(&row, " %.2f s", absl::ToDoubleSeconds(times.last));
          if (degree > 0) absl::StrAppendFormat(&row, " (%d)", times.depth);
          row += " |";
        }
        std::printf("%s\n", row.c_str());
      }
    }
  }
  return 0;
}
