#include "coordinator/feedback/import_session.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

// A line without an id is named by what it says, ratings aside: so its name is what it was before sets had ratings, and
// an import that is repeated finds it.
std::string NameOf(v1::Comparison comparison) {
  comparison.clear_first_ratings();
  comparison.clear_second_ratings();
  return ComparisonDigest(comparison);
}

constexpr int kMostProblems = 1000;
constexpr size_t kLongestId = 128;

absl::uint128 KeyOf(const v1::Comparison& comparison) {
  const std::string hex = artifact::Sha256Hex(comparison.id());
  uint64_t high = 0, low = 0;
  (void)absl::SimpleHexAtoi(hex.substr(0, 16), &high);
  (void)absl::SimpleHexAtoi(hex.substr(16, 16), &low);
  return absl::MakeUint128(high, low);
}

}  // namespace

std::string ImportProblem(const v1::Comparison& comparison) {
  if (comparison.prompt().text().empty() && comparison.prompt().messages().empty())
    return "prompt.text: expected a text, found nothing";
  if (comparison.preference() != v1::FIRST && comparison.preference() != v1::SECOND &&
      comparison.preference() != v1::TIE) {
    return "preference: expected FIRST, SECOND or TIE";
  }
  if (comparison.first().text() == comparison.second().text()) return "first, second: expected two different texts";
  if (!(comparison.strength() >= 0 && comparison.strength() <= 1))
    return absl::StrCat("strength: expected 0 to 1, found ", comparison.strength());
  for (const auto& [field, ratings] : {std::pair("first_ratings", &comparison.first_ratings()),
                                       std::pair("second_ratings", &comparison.second_ratings())}) {
    for (const auto& [criterion, value] : *ratings) {
      if (!std::isfinite(value))
        return absl::StrCat(field, ".", criterion, ": expected a finite number, found ", value);
    }
  }
  if (comparison.id().size() > kLongestId) return absl::StrCat("id: expected at most ", kLongestId, " bytes");
  for (const char c : comparison.id()) {
    if (static_cast<unsigned char>(c) < 0x20) return "id: expected no control characters";
  }
  return "";
}

absl::Status ImportSession::Begin() {
  RLHF_RETURN_IF_ERROR(start_.make_staging());
  lines_.open(start_.staging + "/comparisons.jsonl", std::ios::binary);
  builder_ = std::make_unique<SetBuilder>(&lines_, std::set<std::string>());
  RLHF_ASSIGN_OR_RETURN(log_, ImportLogWriter::Open(start_.log_path, start_.log_length));
  log_length_ = start_.log_length;
  if (start_.log_length == 0) return absl::OkStatus();
  const absl::StatusOr<std::string> previous =
      start_.find_previous ? start_.find_previous() : absl::NotFoundError("no set was published");
  const bool whole = previous.ok();
  if (whole) {
    builder_->Begin(start_.previous);
    std::ifstream in(*previous + "/comparisons.jsonl", std::ios::binary);
    if (in.peek() != std::ifstream::traits_type::eof()) lines_ << in.rdbuf();
  }
  return Reread(/*write=*/!whole);
}

absl::Status ImportSession::Reread(bool write) {
  RLHF_ASSIGN_OR_RETURN(const auto reader, ImportLogReader::Open(start_.log_path, start_.log_length));
  v1::Comparison comparison;
  while (true) {
    RLHF_ASSIGN_OR_RETURN(const bool more, reader->Next(&comparison));
    if (!more) return absl::OkStatus();
    known_.insert(KeyOf(comparison));
    if (write) builder_->Add(comparison);
  }
}

absl::Status ImportSession::Add(v1::ImportComparisonsRequest* piece) {
  for (int i = 0; i < piece->comparisons_size(); ++i) {
    v1::Comparison& comparison = *piece->mutable_comparisons(i);
    const int64_t line = i < piece->lines_size() ? piece->lines(i) : seen_ + 1;
    ++seen_;
    comparison.set_project(start_.project);
    if (std::string problem = ImportProblem(comparison); !problem.empty()) {
      response_.set_rejected(response_.rejected() + 1);
      if (response_.line_problems_size() == kMostProblems) continue;
      response_.add_problems(absl::StrCat("comparisons[", line - 1, "]: ", problem));
      v1::LineProblem& added = *response_.add_line_problems();
      added.set_line(line);
      added.set_reason(std::move(problem));
      continue;
    }
    if (comparison.id().empty()) comparison.set_id(NameOf(comparison));
    if (!known_.insert(KeyOf(comparison)).second) {
      response_.set_duplicates(response_.duplicates() + 1);
      continue;
    }
    RLHF_RETURN_IF_ERROR(log_->Append(comparison));
    builder_->Add(comparison);
    response_.set_imported(response_.imported() + 1);
  }
  return absl::OkStatus();
}

absl::Status ImportSession::Finish() {
  RLHF_ASSIGN_OR_RETURN(log_length_, log_->Sync());
  lines_.close();
  if (!lines_.good())
    return absl::UnavailableError(absl::StrCat("cannot write ", start_.staging, "/comparisons.jsonl"));
  *response_.mutable_set() = builder_->Finish();
  return absl::OkStatus();
}

}  // namespace rlhf::coordinator
