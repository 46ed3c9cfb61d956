#include "coordinator/feedback/comparison_set.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/rounded_sum.h"
#include "common/status_util.h"
#include "coordinator/comparison_line.h"

namespace rlhf::coordinator {
namespace {

constexpr char kPrefix[] = "comparison_set/";

std::string RowKey(const v1::ComparisonSet& set) {
  return absl::StrFormat("%s%s/%s/%012d", kPrefix, set.project(), set.name(), set.version());
}

void AppendPart(absl::string_view part, std::string* content) {
  absl::StrAppend(content, part.size(), ":", part);
}

void AppendPrompt(const v1::Prompt& prompt, std::string* content) {
  AppendPart(prompt.text(), content);
  if (!prompt.text().empty()) return;  // the text is the messages, as people read them
  for (const v1::ChatMessage& message : prompt.messages()) {
    AppendPart(message.role(), content);
    AppendPart(message.content(), content);
  }
}

void AppendRatings(const google::protobuf::Map<std::string, double>& ratings, std::string* content) {
  for (const auto& [criterion, value] : std::map<std::string, double>(ratings.begin(), ratings.end())) {
    AppendPart(criterion, content);
    AppendPart(absl::StrFormat("%.17g", value), content);
  }
}

}  // namespace

void SetBuilder::Begin(const v1::ComparisonSet& previous) {
  set_.set_previous(previous.digest());
  set_.set_comparisons(previous.comparisons());
  set_.set_ties(previous.ties());
  *set_.mutable_raters() = previous.raters();
  content_.Update(previous.content_sha256());
  excluded_.insert(previous.excluded_raters().begin(), previous.excluded_raters().end());
}

void SetBuilder::NextJob(bool pair_ratings) {
  WritePairs();
  pair_ratings_ = pair_ratings;
}

void SetBuilder::Add(const v1::Comparison& comparison) {
  if (excluded_.count(comparison.rater()) > 0) return;
  std::string line;
  if (kind_ == Kind::kSft) {
    line = SftLine(comparison);
    if (line.empty()) return;
  } else {
    if (pair_ratings_ && comparison.kind() == v1::FEEDBACK_RATING && !comparison.planted() &&
        !comparison.rater().empty()) {
      std::string prompt;
      AppendPrompt(comparison.prompt(), &prompt);
      ratings_[{comparison.rater(), std::move(prompt)}].push_back(comparison);
    }
    if (!IsTrainingComparison(comparison)) return;
    line = ComparisonLine(comparison);
  }
  Write(comparison, line);
}

void SetBuilder::Write(const v1::Comparison& comparison, const std::string& line) {
  if (kind_ == Kind::kComparisons && comparison.preference() == v1::TIE) set_.set_ties(set_.ties() + 1);
  *out_ << line << '\n';
  content_.Update(ComparisonDigest(comparison));
  set_.set_comparisons(set_.comparisons() + 1);
  if (!comparison.rater().empty()) ++(*set_.mutable_raters())[comparison.rater()];
}

void SetBuilder::WritePairs() {
  for (const auto& [key, rated] : ratings_) {
    for (size_t i = 0; i < rated.size(); ++i) {
      for (size_t j = i + 1; j < rated.size(); ++j) {
        if (const auto made = PairOfRatings(rated[i], rated[j])) Write(*made, ComparisonLine(*made));
      }
    }
  }
  ratings_.clear();
}

v1::ComparisonSet SetBuilder::Finish() {
  WritePairs();
  set_.set_content_sha256(content_.FinishHex());
  for (const std::string& rater : excluded_) set_.add_excluded_raters(rater);
  return set_;
}

std::optional<v1::Comparison> PairOfRatings(const v1::Comparison& first, const v1::Comparison& second) {
  if (first.first().text() == second.first().text()) return std::nullopt;
  v1::Comparison made;
  RoundedSum of_first, of_second;
  for (const auto& [criterion, value] :
       std::map<std::string, double>(first.first_ratings().begin(), first.first_ratings().end())) {
    const auto other = second.first_ratings().find(criterion);
    if (other == second.first_ratings().end()) continue;
    (*made.mutable_first_ratings())[criterion] = value;
    (*made.mutable_second_ratings())[criterion] = other->second;
    of_first.Add(value);
    of_second.Add(other->second);
  }
  if (made.first_ratings().empty()) return std::nullopt;
  made.set_id(absl::StrCat(first.id(), "+", second.id()));
  made.set_project(first.project());
  *made.mutable_prompt() = first.prompt();
  *made.mutable_first() = first.first();
  *made.mutable_second() = second.first();
  const double difference = Difference(of_first, of_second);
  made.set_preference(difference == 0 ? v1::TIE : difference > 0 ? v1::FIRST : v1::SECOND);
  made.set_rater(first.rater());
  if (first.rater_group() == second.rater_group()) made.set_rater_group(first.rater_group());
  for (const auto& [tag, value] : first.tags()) {
    const auto other = second.tags().find(tag);
    if (other != second.tags().end() && other->second == value) (*made.mutable_tags())[tag] = value;
  }
  made.set_kind(v1::FEEDBACK_COMPARISON);
  return made;
}

std::string ComparisonDigest(const v1::Comparison& c) {
  std::string content;
  const auto add = [&](absl::string_view part) { AppendPart(part, &content); };
  add(c.id());
  AppendPrompt(c.prompt(), &content);
  add(c.first().text());
  add(c.second().text());
  add(absl::StrCat(c.kind() == v1::FEEDBACK_KIND_UNSPECIFIED ? v1::FEEDBACK_COMPARISON : c.kind(), "/", c.preference(),
                   "/", c.strength()));
  add(c.rater());
  if (!c.first_ratings().empty() || !c.second_ratings().empty()) {
    add("first");
    AppendRatings(c.first_ratings(), &content);
    add("second");
    AppendRatings(c.second_ratings(), &content);
  }
  return artifact::Sha256Hex(content).substr(0, 32);
}

absl::StatusOr<SetTable> SetTable::Load(StateStore* store) {
  SetTable table;
  const absl::Status status = store->Scan(Table::kMeta, kPrefix, [&](absl::string_view key, absl::string_view value) {
    table.rows_[std::string(key)].ParseFromArray(value.data(), static_cast<int>(value.size()));
    return true;
  });
  if (!status.ok()) return status;
  return table;
}

void SetTable::Add(v1::ComparisonSet* set, WriteBatch* batch) {
  int64_t newest = 0;
  for (const v1::ComparisonSet& other : List(set->project(), set->name())) newest = other.version();
  set->set_version(newest + 1);
  rows_[RowKey(*set)] = *set;
  batch->Put(Table::kMeta, RowKey(*set), set->SerializeAsString());
}

std::vector<v1::ComparisonSet> SetTable::List(const std::string& project, const std::string& name) const {
  std::vector<v1::ComparisonSet> found;
  const std::string prefix = absl::StrCat(kPrefix, project, "/", name.empty() ? "" : absl::StrCat(name, "/"));
  for (auto it = rows_.lower_bound(prefix); it != rows_.end() && it->first.compare(0, prefix.size(), prefix) == 0;
       ++it) {
    if (name.empty() || it->second.name() == name) found.push_back(it->second);
  }
  return found;
}

const v1::ComparisonSet* SetTable::FindDigest(const std::string& digest) const {
  const v1::ComparisonSet* found = nullptr;
  for (const auto& [key, set] : rows_) {
    if (set.digest() != digest) continue;
    if (set.name() == set.made_by()) return &set;
    if (found == nullptr) found = &set;
  }
  return found;
}

std::vector<v1::ComparisonSet> SetTable::Forget(const std::string& rater, WriteBatch* batch) {
  std::vector<v1::ComparisonSet> found;
  for (auto& [key, set] : rows_) {
    if (set.raters().count(rater) == 0) continue;
    found.push_back(set);
    set.set_forgotten(true);
    batch->Put(Table::kMeta, key, set.SerializeAsString());
  }
  return found;
}

namespace {

bool HasAnyOf(const v1::ComparisonSet& set, const std::set<std::string>& raters) {
  for (const auto& [rater, count] : set.raters()) {
    if (raters.count(rater) > 0) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::vector<SetPart>> PartsOfSet(const SetTable& sets, const std::string& digest,
                                                const std::set<std::string>& excluded,
                                                const std::function<bool(const std::string&)>& is_job) {
  const v1::ComparisonSet* set = sets.FindDigest(digest);
  SetPart lines;
  if (set != nullptr) lines.lines = *set;
  lines.lines.set_digest(digest);
  if (set == nullptr) return std::vector<SetPart>{lines};
  if (!set->forgotten() && !HasAnyOf(*set, excluded)) return std::vector<SetPart>{lines};
  if (set->name() == set->made_by() && is_job(set->made_by())) {
    std::vector<SetPart> parts;
    if (!set->previous().empty()) {
      RLHF_ASSIGN_OR_RETURN(parts, PartsOfSet(sets, set->previous(), excluded, is_job));
    }
    parts.emplace_back().job_id = set->made_by();
    return parts;
  }
  if (!set->forgotten()) return std::vector<SetPart>{lines};
  const std::vector<v1::ComparisonSet> versions = sets.List(set->project(), set->name());
  for (auto newest = versions.rbegin(); newest != versions.rend(); ++newest) {
    if (newest->version() <= set->version() || newest->forgotten()) continue;
    SetPart without;
    without.lines = *newest;
    return std::vector<SetPart>{without};
  }
  return absl::FailedPreconditionError(
      absl::StrCat("set ", set->name(), " version ", set->version(), " (", digest,
                   ") has judgements of a rater who was forgotten since, and no newer version without them: expected "
                   "one that may be "
                   "used; freeze it again (`rlhfctl feedback freeze`) and name that, or set `fresh`"));
}

}  // namespace rlhf::coordinator
