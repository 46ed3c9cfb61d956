#include "coordinator/feedback/comparison_set.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/comparison_line.h"

namespace rlhf::coordinator {
namespace {

constexpr char kPrefix[] = "comparison_set/";

std::string RowKey(const v1::ComparisonSet& set) {
  return absl::StrFormat("%s%s/%s/%012d", kPrefix, set.project(), set.name(), set.version());
}

}  // namespace

void SetBuilder::Begin(const v1::ComparisonSet& previous) {
  set_.set_previous(previous.digest());
  set_.set_comparisons(previous.comparisons());
  set_.set_ties(previous.ties());
  *set_.mutable_raters() = previous.raters();
  content_.Update(previous.content_sha256());
}

void SetBuilder::Add(const v1::Comparison& comparison) {
  if (excluded_.count(comparison.rater()) > 0) return;
  std::string line;
  if (kind_ == Kind::kSft) {
    line = SftLine(comparison);
    if (line.empty()) return;
  } else {
    if (!IsTrainingComparison(comparison)) return;
    if (comparison.preference() == v1::TIE) set_.set_ties(set_.ties() + 1);
    line = ComparisonLine(comparison);
  }
  *out_ << line << '\n';
  content_.Update(ComparisonDigest(comparison));
  set_.set_comparisons(set_.comparisons() + 1);
  if (!comparison.rater().empty()) ++(*set_.mutable_raters())[comparison.rater()];
}

v1::ComparisonSet SetBuilder::Finish() {
  set_.set_content_sha256(content_.FinishHex());
  for (const std::string& rater : excluded_) set_.add_excluded_raters(rater);
  return set_;
}

std::string ComparisonDigest(const v1::Comparison& c) {
  std::string content;
  const auto add = [&](absl::string_view part) { absl::StrAppend(&content, part.size(), ":", part); };
  add(c.id());
  add(c.prompt().text());
  if (c.prompt().text().empty()) {  // else the text is the messages, as people read them
    for (const v1::ChatMessage& message : c.prompt().messages()) {
      add(message.role());
      add(message.content());
    }
  }
  add(c.first().text());
  add(c.second().text());
  add(absl::StrCat(c.kind() == v1::FEEDBACK_KIND_UNSPECIFIED ? v1::FEEDBACK_COMPARISON : c.kind(), "/", c.preference(),
                   "/", c.strength()));
  add(c.rater());
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
  for (const auto& [key, set] : rows_) {
    if (set.digest() == digest) return &set;
  }
  return nullptr;
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

}  // namespace rlhf::coordinator
