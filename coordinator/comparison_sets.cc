#include "coordinator/comparison_sets.h"

#include <map>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "artifact/digest.h"
#include "common/canonical_bytes.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "coordinator/comparison_line.h"
#include "coordinator/names.h"

namespace rlhf::coordinator {
namespace {

constexpr int kMaxProblems = 100;

std::string PrefixOf(const std::string& project, const std::string& set) {
  return absl::StrCat("set/", project, "/", set, "//");
}

std::string ProblemOf(const v1::Comparison& comparison) {
  if (comparison.prompt().text().empty()) return "prompt.text: expected a text, found nothing";
  if (comparison.preference() != v1::FIRST && comparison.preference() != v1::SECOND &&
      comparison.preference() != v1::TIE) {
    return "preference: expected FIRST, SECOND or TIE";
  }
  if (comparison.first().text() == comparison.second().text()) return "first, second: expected two different texts";
  if (!(comparison.strength() >= 0 && comparison.strength() <= 1)) {
    return absl::StrCat("strength: expected 0 to 1, found ", comparison.strength());
  }
  return "";
}

}  // namespace

absl::StatusOr<std::vector<v1::Comparison>> ComparisonSets::Read(const std::string& project, const std::string& set) {
  std::vector<v1::Comparison> found;
  absl::Status bad;
  RLHF_RETURN_IF_ERROR(
      store_->Scan(Table::kComparisons, PrefixOf(project, set), [&](absl::string_view key, absl::string_view value) {
        if (found.emplace_back().ParseFromArray(value.data(), static_cast<int>(value.size()))) return true;
        bad = absl::DataLossError(absl::StrCat("the comparison row \"", key, "\" cannot be read; restore a backup"));
        return false;
      }));
  RLHF_RETURN_IF_ERROR(bad);
  return found;
}

void ComparisonSets::Import(const std::string& subject, const std::string& project, const std::string& set,
                            std::vector<v1::Comparison> comparisons, Done<v1::ImportComparisonsResponse> done) {
  absl::Status status = CheckName("project", project);
  if (status.ok()) status = CheckAlias("set", set);
  if (!status.ok()) return done(status);
  const absl::StatusOr<std::vector<v1::Comparison>> before = Read(project, set);
  if (!before.ok()) return done(before.status());
  std::set<std::string> ids;
  for (const v1::Comparison& comparison : *before) ids.insert(comparison.id());

  v1::ImportComparisonsResponse response;
  WriteBatch batch;
  for (size_t i = 0; i < comparisons.size(); ++i) {
    v1::Comparison& comparison = comparisons[i];
    comparison.set_project(project);
    std::string problem = ProblemOf(comparison);
    if (comparison.id().empty()) comparison.set_id(artifact::Sha256Hex(CanonicalBytes(comparison)).substr(0, 32));
    if (problem.empty()) problem = std::string(CheckText("id", comparison.id(), 128).message());
    if (!problem.empty()) {
      if (response.problems_size() < kMaxProblems)
        response.add_problems(absl::StrCat("comparisons[", i, "]: ", problem));
      continue;
    }
    if (!ids.insert(comparison.id()).second) {
      response.set_duplicates(response.duplicates() + 1);
      continue;
    }
    batch.Put(Table::kComparisons, PrefixOf(project, set) + comparison.id(), comparison.SerializeAsString());
    response.set_imported(response.imported() + 1);
  }
  // Nothing new: what was published before stands. The alias is still set again, should its last publication have been
  // cut off.
  if (ids.empty()) return done(std::move(response));
  store_->Commit(std::move(batch), [this, subject, project, set, response = std::move(response),
                                    done = std::move(done)](absl::Status committed) mutable {
    loop_->Post(
        [this, subject, project, set, committed, response = std::move(response), done = std::move(done)]() mutable {
          if (!committed.ok()) return done(committed);
          Publish(subject, project, set, std::move(response), std::move(done));
        });
  });
}

void ComparisonSets::Publish(const std::string& subject, const std::string& project, const std::string& set,
                             v1::ImportComparisonsResponse response, Done<v1::ImportComparisonsResponse> done) {
  absl::StatusOr<std::vector<v1::Comparison>> all = Read(project, set);
  if (!all.ok()) return done(all.status());
  auto finish = [this, subject, project, set, response = std::move(response),
                 done = std::move(done)](absl::StatusOr<v1::Artifact> made) mutable {
    if (!made.ok()) return done(made.status());
    WriteBatch batch;
    oversight_->Audit(subject, "comparisons.import", absl::StrCat(project, "/", set), "allowed",
                      {{"artifact", made->digest()}, {"imported", absl::StrCat(response.imported())}}, &batch);
    store_->Commit(std::move(batch), [](absl::Status) {});
    v1::SetAliasRequest alias;
    alias.set_digest(made->digest());
    alias.set_project(project);
    alias.set_alias(set);
    artifacts_->SetAlias(
        alias, [response = std::move(response), done = std::move(done)](absl::StatusOr<v1::Artifact> named) mutable {
          if (!named.ok()) return done(named.status());
          done(std::move(response));
        });
  };
  background_->Run([this, subject, project, all = *std::move(all), finish = std::move(finish)]() mutable {
    std::string lines;
    for (const v1::Comparison& comparison : all) absl::StrAppend(&lines, ComparisonLine(comparison), "\n");
    absl::StatusOr<std::string> staging = artifacts_->MakeStaging();
    absl::Status status = staging.status();
    if (status.ok()) status = WriteFileDurably(absl::StrCat(*staging, "/comparisons.jsonl"), lines);
    loop_->Post([this, subject, project, status, staging = std::move(staging), finish = std::move(finish)]() mutable {
      if (!status.ok()) return finish(status);
      artifacts_->PublishDirectory(*staging, "data", project, subject, std::move(finish));
    });
  });
}

}  // namespace rlhf::coordinator
