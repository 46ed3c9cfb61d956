#include "cli/feedback/import.h"

#include <algorithm>
#include <deque>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/connection.h"
#include "cli/feedback/record_reader.h"
#include "common/status_util.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

constexpr size_t kMostProblems = 1000;
constexpr size_t kPieceRecords = 2000, kPieceBytes = 2 << 20;  // below the service's bound on messages
constexpr size_t kPiecesAhead = 4;

struct Problem {
  int64_t number = 0;  // of the record
  std::string reason;
};
struct Piece {
  v1::ImportComparisonsRequest request;
  std::vector<Problem> problems;
};

Piece Parse(std::vector<std::string> records, int64_t number, Format format) {
  Piece piece;
  for (const std::string& record : records) {
    auto parsed = ParseRecord(record, format);
    if (parsed.ok()) {
      for (v1::Comparison& comparison : *parsed) {
        *piece.request.add_comparisons() = std::move(comparison);
        piece.request.add_lines(number);
      }
    } else {
      piece.problems.push_back({number, std::string(parsed.status().message())});
    }
    ++number;
  }
  return piece;
}

}  // namespace

absl::StatusOr<ImportResult> ImportFiles(const std::shared_ptr<grpc::Channel>& channel, const std::string& project,
                                         const std::string& set, const std::vector<std::string>& files, Format format) {
  ImportResult result;
  const auto stub = v1::FeedbackService::NewStub(channel);
  const auto context = CallContext(absl::Hours(6));
  const auto writer = stub->ImportComparisons(context.get(), &result.response);
  struct Place {
    uint32_t file;
    int64_t line;
  };
  std::vector<Place> places;  // of every record, by the number that the service is told
  const auto named = [&](int64_t number, const std::string& reason) {
    const Place& place = places[static_cast<size_t>(number)];
    return absl::StrCat(files[place.file], ":", place.line, ": ", reason);
  };
  std::vector<std::pair<int64_t, std::string>> problems;
  int64_t rejected_here = 0;
  bool open = true;

  std::deque<std::future<Piece>> ahead;
  const auto send_one = [&] {
    Piece piece = ahead.front().get();
    ahead.pop_front();
    for (const Problem& problem : piece.problems) {
      ++rejected_here;
      if (problems.size() < kMostProblems) problems.emplace_back(problem.number, named(problem.number, problem.reason));
    }
    piece.request.set_project(project);
    piece.request.set_set(set);
    open = open && writer->Write(piece.request);
  };
  std::vector<std::string> records;
  size_t bytes = 0;
  const auto flush = [&] {
    if (records.empty()) return;
    const auto begin = static_cast<int64_t>(places.size() - records.size());
    ahead.push_back(std::async(std::launch::async, Parse, std::move(records), begin, format));
    records = {};
    bytes = 0;
    if (ahead.size() >= kPiecesAhead) send_one();
  };
  absl::Status read;
  for (size_t f = 0; f < files.size() && read.ok(); ++f) {
    const auto reader = RecordReader::Open(files[f]);
    read = reader.status();
    while (open && read.ok()) {
      std::string record;
      int64_t line = 0;
      const absl::StatusOr<bool> more = (*reader)->Next(&record, &line);
      read = more.status();
      if (!more.ok() || !*more) break;
      places.push_back({static_cast<uint32_t>(f), line});
      bytes += record.size();
      records.push_back(std::move(record));
      if (records.size() >= kPieceRecords || bytes >= kPieceBytes) flush();
    }
  }
  flush();
  while (!ahead.empty()) send_one();
  if (read.ok() && places.empty())
    read = absl::InvalidArgumentError("expected at least one record in the files, found none");
  writer->WritesDone();
  const absl::Status sent = FromGrpc(writer->Finish());
  // The service has what came before, whole records.
  if (!read.ok()) {
    const int64_t kept = sent.ok() ? result.response.imported() + result.response.duplicates() : 0;
    return Here(kept == 0 ? read
                          : absl::Status(read.code(), absl::StrCat(read.message(), "; the ", kept,
                                                                   " comparisons before it were imported (importing "
                                                                   "them again is harmless)")));
  }
  if (!sent.ok()) return sent;
  for (const v1::LineProblem& problem : result.response.line_problems()) {
    if (static_cast<size_t>(problem.line()) < places.size())
      problems.emplace_back(problem.line(), named(problem.line(), problem.reason()));
  }
  result.response.set_rejected(result.response.rejected() + rejected_here);
  std::stable_sort(problems.begin(), problems.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  result.response.clear_problems();
  result.response.clear_line_problems();
  for (auto& [number, text] : problems) {
    if (result.problems.size() == kMostProblems) break;
    result.response.add_problems(text);
    result.problems.push_back(std::move(text));
  }
  return result;
}

}  // namespace rlhf::cli
