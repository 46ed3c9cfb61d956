#include "coordinator/grpc_adapter/comparison_streams.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include <prometheus/counter.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/grpc_adapter/call_token.h"
#include "coordinator/grpc_adapter/collect_lookup.h"
#include "coordinator/grpc_adapter/loop_stream.h"

namespace rlhf::coordinator {
namespace {

constexpr char kPseudonymPrefix[] = "rater-";
constexpr size_t kPseudonymDigits = 12;

class ExportStream final : public LoopStream<v1::Comparison> {
 public:
  ExportStream(const Edge& edge, ComparisonSets* sets, Caller caller, v1::ExportComparisonsRequest request)
      : LoopStream(edge), sets_(sets), caller_(std::move(caller)), request_(std::move(request)) {}

 private:
  void Pump() override {
    if (!begun_) {
      begun_ = true;
      if (absl::Status status = Begin(); !status.ok()) return End(status);
    }
    v1::Comparison comparison;
    do {
      const absl::StatusOr<bool> more = Next(&comparison);
      if (!more.ok()) return End(more.status());
      if (!*more) return End(NothingToLeaveOut(unmet_));
    } while (LeftOut(comparison));
    Write(std::move(comparison));
  }
  absl::StatusOr<bool> Next(v1::Comparison* comparison) {
    if (reader_ != nullptr) return reader_->Next(comparison);
    if (next_ == comparisons_.size()) return false;
    *comparison = std::move(comparisons_[next_++]);
    return true;
  }
  bool LeftOut(const v1::Comparison& comparison) {
    const bool excluded = excluded_.count(comparison.rater()) > 0;
    if (excluded) unmet_.erase(comparison.rater());
    return excluded || (comparison.planted() && !request_.include_planted());
  }
  // Leaving a person out by name shows which pseudonym is theirs: whoever only reads leaves out pseudonyms.
  absl::Status CheckMayName() const {
    const bool writes = std::any_of(caller_.roles.begin(), caller_.roles.end(),
                                    [](const std::string& role) { return role == "submitter" || role == "admin"; });
    for (const std::string& rater : request_.exclude_raters()) {
      if (writes || IsPseudonym(rater)) continue;
      return WithReason(
          absl::PermissionDeniedError(absl::StrCat("exclude_raters: expected pseudonyms, found \"", rater,
                                                   "\"; only submitters and admins name people, who would be known by "
                                                   "what is left out")),
          v1::ROLE_NOT_ALLOWED);
    }
    return absl::OkStatus();
  }
  absl::Status Begin() {
    RLHF_RETURN_IF_ERROR(CheckMayName());
    for (const std::string& rater : request_.exclude_raters()) unmet_[PseudonymOf(edge_, rater)] = rater;
    for (const auto& [pseudonym, rater] : unmet_) excluded_.insert(pseudonym);
    if (absl::StartsWith(request_.job_id(), "set:")) {
      const std::string project = Edge::ProjectFor(caller_, request_.project());
      RLHF_RETURN_IF_ERROR(edge_.Admit(caller_, project));
      RLHF_ASSIGN_OR_RETURN(reader_, sets_->Read(project, request_.job_id().substr(4)));
      return absl::OkStatus();
    }
    RLHF_ASSIGN_OR_RETURN(const CollectTarget target,
                          FindCollect(edge_, caller_, request_.job_id(), request_.project()));
    const std::string id = target.job_id.empty() ? target.last_id : target.job_id;
    if (!id.empty()) comparisons_ = edge_.feedback->Comparisons(id);
    // Said before anything is sent, where all is at hand.
    for (const v1::Comparison& comparison : comparisons_) unmet_.erase(comparison.rater());
    return NothingToLeaveOut(unmet_);
  }

  ComparisonSets* const sets_;
  const Caller caller_;
  const v1::ExportComparisonsRequest request_;
  bool begun_ = false;
  std::set<std::string> excluded_;            // pseudonyms
  std::map<std::string, std::string> unmet_;  // of those, whose judgements did not come yet: as they were written
  std::unique_ptr<ImportLogReader> reader_;
  std::vector<v1::Comparison> comparisons_;
  size_t next_ = 0;
};

class ImportStream final : public grpc::ServerReadReactor<v1::ImportComparisonsRequest> {
 public:
  ImportStream(const Edge& edge, ComparisonSets* sets, const grpc::CallbackServerContext& context,
               v1::ImportComparisonsResponse* response)
      : edge_(edge),
        sets_(sets),
        caller_(CallerOf(context)),
        watch_(ReadWatch::Begin(edge, context, [this](const absl::Status& revoked) { Abandon(revoked); })),
        response_(response) {
    Read();
  }
  void OnReadDone(bool ok) override {
    if (!watch_->Arrived()) return;
    if (const absl::Status revoked = watch_->Check(); !revoked.ok())
      return edge_.loop->Post([this, revoked] { Abandon(revoked); });
    if (!ok) {
      // A client that has gone away gets what it sent imported all the same.
      if (session_ == nullptr)
        return edge_.loop->Post([this] { Answer(absl::InvalidArgumentError("expected comparisons, found none")); });
      return edge_.transfers->Run([this] {
        const absl::Status written = session_->Finish();
        edge_.loop->Post([this, written] { End(written); });
      });
    }
    if (session_ == nullptr) return edge_.loop->Post([this] { Begin(); });
    if (request_.set() != session_->start().name && !request_.set().empty()) {
      return edge_.loop->Post([this] {
        Abandon(absl::InvalidArgumentError(
            absl::StrCat("set: expected \"", session_->start().name, "\" in every message of the stream")));
      });
    }
    edge_.transfers->Run([this] { Take(); });
  }
  void OnDone() override { delete this; }

 private:
  void Read() {
    watch_->Read([this] { StartRead(&request_); });
  }
  void Begin() {
    const std::string project = Edge::ProjectFor(caller_, request_.project());
    if (absl::Status status = edge_.Admit(caller_, project); !status.ok()) return Answer(status);
    auto session = sets_->BeginImport(project, request_.set());
    if (!session.ok()) return Answer(session.status());
    session_ = *std::move(session);
    edge_.transfers->Run([this] {
      if (const absl::Status begun = session_->Begin(); !begun.ok())
        return edge_.loop->Post([this, begun] { Abandon(begun); });
      Take();
    });
  }
  // In the background.
  void Take() {
    for (v1::Comparison& comparison : *request_.mutable_comparisons()) {
      if (!comparison.rater().empty() && !IsPseudonym(comparison.rater()))
        comparison.set_rater(edge_.tokens->Pseudonym(comparison.rater()));
    }
    if (const absl::Status taken = session_->Add(&request_); !taken.ok())
      return edge_.loop->Post([this, taken] { Abandon(taken); });
    Read();
  }
  void End(const absl::Status& written) {
    if (!written.ok()) return Abandon(written);
    sets_->EndImport(caller_.subject, session_, [this](absl::StatusOr<v1::ImportComparisonsResponse> result) {
      const absl::Status status = result.status();
      if (status.ok()) {
        CountComparisons(edge_, "import", static_cast<double>(result->imported()));
        *response_ = *std::move(result);
      }
      Answer(status);
    });
  }
  void Abandon(const absl::Status& status) {
    if (session_ != nullptr) sets_->AbandonImport(*session_);
    Answer(status);
  }
  void Answer(const absl::Status& status) { Finish(ToGrpc(status)); }

  const Edge& edge_;
  ComparisonSets* const sets_;
  const Caller caller_;
  const std::shared_ptr<ReadWatch> watch_;
  v1::ImportComparisonsResponse* const response_;
  v1::ImportComparisonsRequest request_;
  std::shared_ptr<ImportSession> session_;
};

}  // namespace

std::string PseudonymOf(const Edge& edge, const std::string& rater) {
  return IsPseudonym(rater) ? rater : edge.tokens->Pseudonym(rater);
}

absl::Status NothingToLeaveOut(const std::map<std::string, std::string>& raters) {
  if (raters.empty()) return absl::OkStatus();
  std::vector<std::string> names;
  for (const auto& [pseudonym, rater] : raters) names.push_back(absl::StrCat("\"", rater, "\""));
  return absl::InvalidArgumentError(
      absl::StrCat("exclude_raters: expected pseudonyms or subjects of raters who judged here, found ",
                   absl::StrJoin(names, ", "), "; `rlhfctl feedback agreement` names those who did"));
}

bool IsPseudonym(const std::string& rater) {
  const size_t prefix = sizeof(kPseudonymPrefix) - 1;
  return absl::StartsWith(rater, kPseudonymPrefix) && rater.size() == prefix + kPseudonymDigits &&
         std::all_of(rater.begin() + static_cast<int64_t>(prefix), rater.end(),
                     [](unsigned char c) { return absl::ascii_isxdigit(c); });
}

void CountComparisons(const Edge& edge, const char* source, double n) {
  if (edge.metrics == nullptr || n <= 0) return;
  edge.metrics
      ->Counter("rlhf_comparisons_total", "Comparisons taken in, by where they came from.", {{"source", source}})
      .Increment(n);
}

grpc::ServerReadReactor<v1::ImportComparisonsRequest>* ImportStreamOf(const Edge& edge, ComparisonSets* sets,
                                                                      const grpc::CallbackServerContext& context,
                                                                      v1::ImportComparisonsResponse* response) {
  return new ImportStream(edge, sets, context, response);
}

grpc::ServerWriteReactor<v1::Comparison>* ExportStreamOf(const Edge& edge, ComparisonSets* sets,
                                                         const grpc::CallbackServerContext& context,
                                                         const v1::ExportComparisonsRequest& request) {
  return ExportStream::Run(std::make_shared<ExportStream>(edge, sets, CallerOf(context), request), context);
}

}  // namespace rlhf::coordinator
