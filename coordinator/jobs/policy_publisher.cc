#include "coordinator/jobs/policy_publisher.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"
#include "coordinator/lineage.h"
#include "coordinator/model_card.h"

namespace rlhf::coordinator {
namespace {

std::string CardKey(const v1::GateRow& gate) {
  return absl::StrCat("model_card/", gate.id());
}

// The lineage's rows, from inside of the job table.
LineageRows RowsOf(JobHost* host, const v1::Job& pipeline) {
  LineageRows rows;
  for (const std::string& child : pipeline.children()) {
    if (const v1::Job* stage = host->Find(child); stage != nullptr) rows.jobs.push_back(*stage);
  }
  const JobsDeps& deps = host->deps();
  rows.sets = deps.feedback->sets().List(pipeline.spec().project(), "");
  v1::ListGatesRequest gates;
  gates.mutable_page()->set_page_size(1000);
  do {
    const auto page = deps.oversight->ListGates(gates);
    if (!page.ok()) break;
    for (const v1::GateRow& gate : page->gates()) rows.gates.push_back(gate);
    gates.mutable_page()->set_page_token(page->next_page_token());
  } while (!gates.page().page_token().empty());
  v1::ListArtifactsRequest list;
  list.set_project(pipeline.spec().project());
  list.mutable_page()->set_page_size(1000);
  do {
    const auto page = deps.artifacts->List(list);
    if (!page.ok()) break;
    for (const v1::Artifact& artifact : page->artifacts()) rows.artifacts.push_back(artifact);
    list.mutable_page()->set_page_token(page->next_page_token());
  } while (!list.page().page_token().empty());
  return rows;
}

// The rest, once the card is an artifact.
void Name(JobHost* host, const std::string& job_id, const v1::GateRow& gate, const std::string& card,
          const std::function<void(const absl::Status&)>& done) {
  const auto finish = [host, job_id, gate, card, done] {
    v1::Job* row = host->Find(job_id);
    if (row == nullptr) return;
    (*row->mutable_result()->mutable_artifacts())[CardKey(gate)] = card;
    (*row->mutable_result()->mutable_artifacts())["approved"] = gate.policy();
    WriteBatch batch;
    const Signer* signer = host->deps().oversight->audit().signer();
    host->deps().oversight->Audit("coordinator", "policy.approve", gate.policy(), "done",
                                  {{"gate", gate.id()},
                                   {"model_card", card},
                                   {"report_sha256", gate.report_sha256()},
                                   {"signed_with", signer == nullptr ? "unsigned" : signer->key_sha256()}},
                                  &batch);
    host->AppendMessage(row,
                        absl::StrCat("gate ", gate.id(), " approved the policy ", gate.policy().substr(0, 19),
                                     gate.spec().publish_as().empty()
                                         ? std::string()
                                         : absl::StrCat(", published as approved/", gate.spec().publish_as())),
                        &batch);
    host->CommitThen(job_id, std::move(batch),
                     [host, done](absl::Status status) { host->deps().loop->Post([done, status] { done(status); }); });
  };
  if (gate.spec().publish_as().empty()) return finish();
  const v1::Job* row = host->Find(job_id);
  const std::string project = row == nullptr ? "default" : row->spec().project();
  v1::SetAliasRequest alias;
  alias.set_project(project);
  alias.set_digest(card);
  alias.set_alias(absl::StrCat("approved/", gate.spec().publish_as(), ".card"));
  // The card first: an approved policy never lacks one.
  host->deps().artifacts->SetAlias(
      alias, nullptr, [host, gate, project, finish, done](absl::StatusOr<v1::Artifact> named) {
        if (!named.ok()) return done(named.status());
        v1::SetAliasRequest policy;
        policy.set_project(project);
        policy.set_digest(gate.policy());
        policy.set_alias(absl::StrCat("approved/", gate.spec().publish_as()));
        host->deps().artifacts->SetAlias(policy, nullptr, [finish, done](absl::StatusOr<v1::Artifact> published) {
          if (!published.ok()) return done(published.status());
          finish();
        });
      });
}

}  // namespace

bool IsPublished(const v1::Job& pipeline, const v1::GateRow& gate) {
  return pipeline.result().artifacts().count(CardKey(gate)) > 0;
}

void PublishPolicy(JobHost* host, const std::string& job_id, const v1::GateRow& gate,
                   const std::function<void(const absl::Status&)>& done) {
  const JobsDeps& deps = host->deps();
  ModelCardInputs inputs;
  inputs.pipeline = *host->Find(job_id);
  inputs.gate = gate;
  inputs.at = deps.loop->clock().WallNow();
  absl::StatusOr<v1::Lineage> lineage = LineageOf(gate.policy(), RowsOf(host, inputs.pipeline));
  if (!lineage.ok()) return done(lineage.status());
  inputs.lineage = *std::move(lineage);
  const Signer* signer = deps.oversight->audit().signer();
  if (signer != nullptr) inputs.key_sha256 = signer->key_sha256();
  deps.background->Run([host, job_id, gate, inputs, signer, folder = deps.artifacts->NewStaging(), done,
                        loop = deps.loop] {
    absl::Status written = folder.make();
    if (written.ok()) {
      written = WithVolumeReason(WriteModelCard(inputs, signer, folder.path));
      std::error_code ignored;
      if (!written.ok()) std::filesystem::remove_all(folder.path, ignored);
    }
    loop->Post([host, job_id, gate, staging = folder.path, written, done, project = inputs.pipeline.spec().project()] {
      if (!written.ok()) return done(written);
      host->deps().artifacts->PublishDirectory(staging, "model_card", project, job_id,
                                               [host, job_id, gate, done](absl::StatusOr<v1::Artifact> card) {
                                                 if (!card.ok()) return done(card.status());
                                                 Name(host, job_id, gate, card->digest(), done);
                                               });
    });
  });
}

}  // namespace rlhf::coordinator
