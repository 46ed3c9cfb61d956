#include "coordinator/model_card.h"

#include <map>

#include <google/protobuf/util/time_util.h>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

using Json = nlohmann::ordered_json;

std::string Time(const google::protobuf::Timestamp& at) {
  return at.seconds() == 0 ? "" : google::protobuf::util::TimeUtil::ToString(at);
}

Json MetricJson(const v1::Metric& metric) {
  Json out;
  out["value"] = metric.value();
  if (metric.has_low() && metric.has_high()) out["interval_95"] = {metric.low(), metric.high()};
  if (metric.n() > 0) out["n"] = metric.n();
  return out;
}

std::string Number(const Json& metric) {
  std::string text = absl::StrFormat("%.4g", metric["value"].get<double>());
  if (metric.contains("interval_95"))
    absl::StrAppendFormat(&text, " [%.4g, %.4g]", metric["interval_95"][0].get<double>(),
                          metric["interval_95"][1].get<double>());
  if (metric.contains("n")) absl::StrAppend(&text, ", n = ", metric["n"].get<int64_t>());
  return text;
}

std::string Cell(std::string text) {
  for (char& c : text) {
    if (c == '|' || c == '\n') c = ' ';
  }
  return text;
}

}  // namespace

std::string ModelCardJson(const ModelCardInputs& inputs) {
  const v1::GateRow& gate = inputs.gate;
  Json card;
  card["model"] = gate.policy();
  card["project"] = inputs.pipeline.spec().project();
  card["published_as"] = gate.spec().publish_as().empty() ? "" : absl::StrCat("approved/", gate.spec().publish_as());
  card["signed_with"] = inputs.key_sha256.empty() ? "unsigned" : absl::StrCat("sha256:", inputs.key_sha256);
  card["written_at"] = absl::FormatTime(absl::RFC3339_sec, inputs.at, absl::UTCTimeZone());
  card["pipeline"] = {{"id", inputs.pipeline.id()},
                      {"name", inputs.pipeline.spec().name()},
                      {"seed", inputs.pipeline.spec().seed()},
                      {"round", gate.round()},
                      {"submitted_by", inputs.pipeline.submitted_by()}};
  card["approval"] = {{"gate", gate.id()},
                      {"report_sha256", gate.report_sha256()},
                      {"required", gate.spec().required_approvals()},
                      {"approvals", Json::array()},
                      {"conditions", Json::array()}};
  for (const v1::Approval& approval : gate.approvals()) {
    card["approval"]["approvals"].push_back({{"by", approval.subject()},
                                             {"approved", approval.approved()},
                                             {"comment", approval.comment()},
                                             {"at", Time(approval.at())}});
  }
  for (const v1::ConditionResult& result : gate.results()) {
    Json condition;
    condition["metric"] = result.condition().stage().empty()
                              ? result.condition().metric()
                              : absl::StrCat(result.condition().stage(), ".", result.condition().metric());
    if (result.condition().has_min()) condition["min"] = result.condition().min();
    if (result.condition().has_max()) condition["max"] = result.condition().max();
    condition["found"] = MetricJson(result.found());
    condition["holds"] = result.holds();
    card["approval"]["conditions"].push_back(condition);
  }
  card["evaluation"] = Json::object();
  for (const auto& [name, metric] : std::map<std::string, v1::Metric>(gate.metrics().begin(), gate.metrics().end()))
    card["evaluation"][name] = MetricJson(metric);
  card["made_from"] = Json::array();
  for (const v1::LineageStep& step : inputs.lineage.steps()) {
    Json entry;
    entry["kind"] = step.kind();
    entry["id"] = step.id();
    if (!step.name().empty()) entry["name"] = step.name();
    if (!step.by().empty()) entry["by"] = step.by();
    if (const std::string at = Time(step.at()); !at.empty()) entry["at"] = at;
    entry["made_from"] = std::vector<std::string>(step.made_from().begin(), step.made_from().end());
    for (const auto& [key, value] : std::map<std::string, std::string>(step.details().begin(), step.details().end())) {
      if (key.rfind("metric ", 0) != 0) entry["details"][key] = value;
    }
    card["made_from"].push_back(entry);
  }
  card["limits"] = {
      "The numbers hold for the suites, slices and sampling settings they were measured with, and for nothing else.",
      "The reward model learned the judgements of the raters named by number above; it has their errors and their "
      "preferences."};
  return card.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string ModelCardMarkdown(const std::string& json) {
  const Json card = Json::parse(json);
  std::string out = absl::StrCat("# Model card\n\nModel `", card["model"].get<std::string>(), "`");
  if (const auto alias = card["published_as"].get<std::string>(); !alias.empty())
    absl::StrAppend(&out, ", published as `", alias, "`");
  const Json& pipeline = card["pipeline"];
  const bool is_signed = card["signed_with"].get<std::string>() != "unsigned";
  absl::StrAppend(&out, " on ", card["written_at"].get<std::string>(), ". ",
                  is_signed ? absl::StrCat("Signed (`model_card.json.sig`) with the audit key `",
                                           card["signed_with"].get<std::string>(), "`.")
                            : "**Unsigned**: the coordinator had no audit key, so nobody can check who wrote this.",
                  "\n\nMade by pipeline `", pipeline["id"].get<std::string>(), "`, seed ",
                  pipeline["seed"].get<uint64_t>(), ", round ", pipeline["round"].get<int>(), "; submitted by ",
                  pipeline["submitted_by"].get<std::string>(), ".\n\n## Approval\n\nGate `",
                  card["approval"]["gate"].get<std::string>(), "`; every approval is of the report `",
                  card["approval"]["report_sha256"].get<std::string>(),
                  "`.\n\n| by | decision | at | comment |\n| --- | --- | --- | --- |\n");
  for (const Json& approval : card["approval"]["approvals"]) {
    absl::StrAppend(&out, "| ", Cell(approval["by"].get<std::string>()), " | ",
                    approval["approved"].get<bool>() ? "approved" : "rejected", " | ",
                    approval["at"].get<std::string>(), " | ", Cell(approval["comment"].get<std::string>()), " |\n");
  }
  absl::StrAppend(&out, "\n| condition | bounds | found |\n| --- | --- | --- |\n");
  for (const Json& condition : card["approval"]["conditions"]) {
    absl::StrAppend(&out, "| ", Cell(condition["metric"].get<std::string>()), " | ",
                    condition.contains("min") ? absl::StrFormat("≥ %.4g ", condition["min"].get<double>()) : "",
                    condition.contains("max") ? absl::StrFormat("≤ %.4g", condition["max"].get<double>()) : "", " | ",
                    Number(condition["found"]), " |\n");
  }
  absl::StrAppend(&out, "\n## Evaluation\n\n| metric | value [95 % interval] |\n| --- | --- |\n");
  for (const auto& [name, metric] : card["evaluation"].items())
    absl::StrAppend(&out, "| ", Cell(name), " | ", Number(metric), " |\n");
  absl::StrAppend(&out, "\n## Made from\n\n| what | id | by | details |\n| --- | --- | --- | --- |\n");
  for (const Json& step : card["made_from"]) {
    std::string details = step.value("name", std::string());
    if (step.contains("details")) {
      for (const auto& [key, value] : step["details"].items())
        absl::StrAppend(&details, details.empty() ? "" : "; ", key, " ", value.get<std::string>());
    }
    absl::StrAppend(&out, "| ", step["kind"].get<std::string>(), " | `", step["id"].get<std::string>(), "` | ",
                    Cell(step.value("by", std::string())), " | ", Cell(details), " |\n");
  }
  absl::StrAppend(&out, "\n## Limits\n\n");
  for (const Json& limit : card["limits"]) absl::StrAppend(&out, "- ", limit.get<std::string>(), "\n");
  return out;
}

absl::Status WriteModelCard(const ModelCardInputs& inputs, const Signer* signer, const std::string& dir) {
  const std::string json = ModelCardJson(inputs);
  RLHF_RETURN_IF_ERROR(WriteFileDurably(dir + "/model_card.json", json));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(dir + "/model_card.md", ModelCardMarkdown(json)));
  if (signer == nullptr) return absl::OkStatus();
  RLHF_RETURN_IF_ERROR(WriteFileDurably(dir + "/model_card.json.sig", signer->Sign(json) + "\n"));
  return WriteFileDurably(dir + "/model_card.pub", signer->public_key_pem());
}

}  // namespace rlhf::coordinator
