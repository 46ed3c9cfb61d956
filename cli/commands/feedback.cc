// feedback: people's judgements, in and out.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/commands/commands.h"
#include "cli/feedback/formats.h"
#include "cli/feedback/import.h"
#include "cli/output.h"
#include "cli/part_file.h"
#include "common/printable.h"
#include "common/spec_loader.h"
#include "common/standard_output.h"
#include "common/status_util.h"
#include "rlhf/v1/feedback_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct FeedbackFlags {
  std::vector<std::string> files, exclude, ratings, second_ratings;
  std::string set, job, format = "auto", export_format = "plain", out, task, prefer, written, comment, rater, name;
  double strength = 0;
  int limit = 1, wait = 0;
  bool skip = false, planted = false, flagged = false, sft = false, pair_ratings = false;
};

using FeedbackStub = v1::FeedbackService::Stub;

template <typename Request, typename Response>
int CallAndPrint(const ConnectionFlags& connection, const Request& request,
                 grpc::Status (FeedbackStub::*method)(grpc::ClientContext*, const Request&, Response*),
                 const std::function<void(const Response&)>& print, absl::Duration timeout = absl::Seconds(60)) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto stub = v1::FeedbackService::NewStub(*channel);
  const auto context = CallContext(timeout);
  Response response;
  if (const absl::Status status = FromGrpc((stub.get()->*method)(context.get(), request, &response)); !status.ok())
    return Fail(status);
  if (connection.output == "json")
    PrintJson(response);
  else
    print(response);
  return v1::EXIT_OK;
}

// The first ones; a file of another format is wrong in every line.
void PrintRejected(const ImportResult& result) {
  constexpr size_t kShown = 20;
  const auto rejected = static_cast<size_t>(result.response.rejected());
  const size_t shown = std::min(kShown, result.problems.size());
  for (size_t i = 0; i < shown; ++i) std::fprintf(stderr, "%s\n", result.problems[i].c_str());
  if (rejected > shown) std::fprintf(stderr, "and %zu more; --output json names the first 1000\n", rejected - shown);
}

int Import(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  auto format = FormatByName(flags.format);
  if (!format.ok()) return Fail(format.status());
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const absl::Time started = absl::Now();
  const auto result = ImportFiles(*channel, connection.project, flags.set, flags.files, *format);
  if (!result.ok()) return Fail(result.status());
  if (connection.output == "json") {
    PrintJson(result->response);
  } else {
    PrintRejected(*result);
    std::printf("%s: %d imported, %d duplicates, %d rejected, in %.1f s; version %d, %d comparisons, %s\n",
                flags.set.c_str(), static_cast<int>(result->response.imported()),
                static_cast<int>(result->response.duplicates()), static_cast<int>(result->response.rejected()),
                absl::ToDoubleSeconds(absl::Now() - started), static_cast<int>(result->response.set().version()),
                static_cast<int>(result->response.set().comparisons()), Short(result->response.set().digest()).c_str());
  }
  return result->response.rejected() == 0 ? v1::EXIT_OK : v1::EXIT_ERROR;
}

absl::Status CheckSource(const FeedbackFlags& flags) {
  return flags.job.empty() && flags.set.empty() ? absl::InvalidArgumentError("expected --job or --set, found neither")
                                                : absl::OkStatus();
}

int Export(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  if (const absl::Status status = CheckSource(flags); !status.ok()) return Fail(status);
  v1::ExportComparisonsRequest request;
  request.set_job_id(flags.set.empty() ? flags.job : absl::StrCat("set:", flags.set));
  request.set_project(connection.project);
  request.set_include_planted(flags.planted);
  for (const std::string& rater : flags.exclude) request.add_exclude_raters(rater);
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  std::unique_ptr<PartFile> file;
  if (!flags.out.empty()) {
    auto made = PartFile::Create(flags.out);
    if (!made.ok()) return Fail(made.status());
    file = *std::move(made);
  }
  const auto stub = v1::FeedbackService::NewStub(*channel);
  const auto context = CallContext(absl::Minutes(30));
  const auto reader = stub->ExportComparisons(context.get(), request);
  v1::Comparison comparison;
  int64_t lines = 0;
  absl::Status written;
  while (written.ok() && reader->Read(&comparison)) {
    std::string line = FormatComparison(comparison, flags.export_format);
    if (line.empty()) continue;
    line += '\n';
    if (file != nullptr) {
      written = file->Write(line);
    } else if (std::fwrite(line.data(), 1, line.size(), stdout) != line.size()) {
      written = Here(FlushStandardOutput());
    }
    ++lines;
  }
  if (!written.ok()) context->TryCancel();
  const absl::Status called = FromGrpc(reader->Finish());
  if (written.ok()) written = called;
  if (written.ok()) written = file != nullptr ? file->Finish() : Here(FlushStandardOutput());
  if (!written.ok()) return Fail(written);
  std::fprintf(stderr, "%d lines\n", static_cast<int>(lines));
  return v1::EXIT_OK;
}

int Next(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  v1::NextTasksRequest request;
  request.set_job_id(flags.job);
  request.set_project(connection.project);
  request.set_max_tasks(flags.limit);
  request.set_wait_ms(flags.wait * 1000);
  return CallAndPrint<v1::NextTasksRequest, v1::NextTasksResponse>(
      connection, request, &FeedbackStub::NextTasks, [](const v1::NextTasksResponse& response) {
        for (const v1::FeedbackTask& task : response.tasks()) {
          std::printf("task %s of job %s\n\n%s\n\n--- first\n%s\n\n", task.id().c_str(), task.job_id().c_str(),
                      Printable(task.prompt().text(), /*keep_lines=*/true).c_str(),
                      Printable(task.first().text(), /*keep_lines=*/true).c_str());
          if (task.kind() == v1::FEEDBACK_RATING) {
            std::printf("rate it: --rate CRITERION=VALUE for each of:");
            for (const std::string& criterion : task.criteria()) std::printf(" %s", criterion.c_str());
            std::printf("\n");
          } else if (task.kind() == v1::FEEDBACK_EDIT) {
            std::printf("write a better version: --written TEXT\n");
          } else if (task.second().text().empty()) {
            std::printf("write an answer (--written TEXT) and compare it (--prefer first|second|tie)\n");
          } else {
            std::printf("--- second\n%s\n\n--prefer first|second|tie\n",
                        Printable(task.second().text(), /*keep_lines=*/true).c_str());
          }
        }
        std::printf("%d of %d answered, %d by you%s\n", static_cast<int>(response.answered()),
                    static_cast<int>(response.wanted()), static_cast<int>(response.mine()),
                    response.closed() ? "; the job needs no more" : "");
      });
}

absl::Status ParseRatings(const std::vector<std::string>& flags, google::protobuf::Map<std::string, double>* ratings) {
  for (const std::string& flag : flags) {
    const size_t equals = flag.find('=');
    char* end = nullptr;
    const double value = equals == std::string::npos ? 0 : std::strtod(flag.c_str() + equals + 1, &end);
    if (end == nullptr || *end != '\0' || end == flag.c_str() + equals + 1)
      return absl::InvalidArgumentError(absl::StrCat("--rate: expected CRITERION=NUMBER, found \"", flag, "\""));
    (*ratings)[flag.substr(0, equals)] = value;
  }
  return absl::OkStatus();
}

int Submit(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  if (flags.skip) {
    v1::SkipTaskRequest request;
    request.set_job_id(flags.job);
    request.set_task_id(flags.task);
    request.set_reason(flags.comment);
    return CallAndPrint<v1::SkipTaskRequest, v1::SkipTaskResponse>(
        connection, request, &FeedbackStub::SkipTask, [](const v1::SkipTaskResponse&) { std::printf("skipped\n"); });
  }
  v1::SubmitFeedbackRequest request;
  v1::Answer& answer = *request.add_answers();
  answer.set_job_id(flags.job);
  answer.set_task_id(flags.task);
  answer.set_written(flags.written);
  answer.set_comment(flags.comment);
  answer.set_strength(flags.strength);
  if (!flags.prefer.empty())
    answer.set_preference(flags.prefer == "first" ? v1::FIRST : flags.prefer == "second" ? v1::SECOND : v1::TIE);
  absl::Status status = ParseRatings(flags.ratings, answer.mutable_first_ratings());
  if (status.ok()) status = ParseRatings(flags.second_ratings, answer.mutable_second_ratings());
  if (!status.ok()) return Fail(status);
  int code = v1::EXIT_OK;
  const int called = CallAndPrint<v1::SubmitFeedbackRequest, v1::SubmitFeedbackResponse>(
      connection, request, &FeedbackStub::SubmitFeedback, [&](const v1::SubmitFeedbackResponse& response) {
        for (const v1::AnswerVerdict& verdict : response.verdicts()) {
          if (verdict.accepted()) {
            std::printf("taken\n");
          } else {
            std::fprintf(stderr, "rlhfctl: not taken: %s\n", verdict.problem().c_str());
            code = v1::EXIT_ERROR;
          }
        }
      });
  return called == v1::EXIT_OK ? code : called;
}

int Stats(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  v1::GetFeedbackStatsRequest request;
  request.set_job_id(flags.job);
  return CallAndPrint<v1::GetFeedbackStatsRequest, v1::GetFeedbackStatsResponse>(
      connection, request, &FeedbackStub::GetFeedbackStats, [](const v1::GetFeedbackStatsResponse& stats) {
        Table table({"ANSWERED", "WANTED", "OPEN", "HANDED OUT", "SKIPPED", "EXPIRED", "PLANTED"});
        table.Row({absl::StrCat(stats.answered()), absl::StrCat(stats.wanted()), absl::StrCat(stats.open()),
                   absl::StrCat(stats.handed_out()), absl::StrCat(stats.skipped()), absl::StrCat(stats.expired()),
                   absl::StrCat(stats.planted())});
        std::fputs(table.Text().c_str(), stdout);
        Table raters({"RATER", "ANSWERS"});
        for (const auto& [rater, answers] :
             std::map<std::string, int64_t>(stats.by_rater().begin(), stats.by_rater().end()))
          raters.Row({rater, absl::StrCat(answers)});
        if (!stats.by_rater().empty()) std::fputs(raters.Text().c_str(), stdout);
      });
}

std::string Interval(const v1::Metric& metric) {
  if (metric.n() == 0) return "";
  return absl::StrFormat("%.3f [%.3f, %.3f] n=%d", metric.value(), metric.low(), metric.high(), metric.n());
}

int Agreement(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  if (const absl::Status status = CheckSource(flags); !status.ok()) return Fail(status);
  v1::GetAgreementRequest request;
  request.set_job_id(flags.set.empty() ? flags.job : absl::StrCat("set:", flags.set));
  request.set_project(connection.project);
  return CallAndPrint<v1::GetAgreementRequest, v1::AgreementReport>(
      connection, request, &FeedbackStub::GetAgreement,
      [](const v1::AgreementReport& report) {
        Table table({"OF", "RAW", "COHEN'S KAPPA", "KRIPPENDORFF'S ALPHA", "ITEMS", "JUDGEMENTS"});
        const auto row = [&](const std::string& name, const v1::Agreement& agreement) {
          table.Row({name, Interval(agreement.raw()), absl::StrFormat("%.3f", agreement.cohen_kappa()),
                     absl::StrFormat("%.3f", agreement.krippendorff_alpha()), absl::StrCat(agreement.items()),
                     absl::StrCat(agreement.judgements())});
        };
        row("preference", report.preference());
        for (const auto& [criterion, agreement] : report.by_criterion()) row(criterion, agreement);
        for (const auto& [group, agreement] : report.by_group()) row(absl::StrCat("raters ", group), agreement);
        std::fputs(table.Text().c_str(), stdout);
        Table raters(
            {"RATER", "JUDGEMENTS", "AGREES WITH OTHERS", "KAPPA", "PLANTED", "FIRST PREFERRED", "SECONDS", "FLAGGED"});
        for (const v1::RaterQuality& rater : report.raters()) {
          raters.Row({rater.rater(), absl::StrCat(rater.judgements()), Interval(rater.agreement()),
                      absl::StrFormat("%.3f", rater.cohen_kappa()), Interval(rater.planted()),
                      Interval(rater.first_preferred()), absl::StrFormat("%.1f", rater.seconds_median()),
                      rater.flagged() ? rater.why() : ""});
        }
        std::fputs(raters.Text().c_str(), stdout);
      },
      absl::Minutes(5));
}

int Freeze(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  if (const absl::Status status = CheckSource(flags); !status.ok()) return Fail(status);
  v1::FreezeSetRequest request;
  request.set_job_id(flags.set.empty() ? flags.job : absl::StrCat("set:", flags.set));
  request.set_project(connection.project);
  request.set_name(flags.name);
  for (const std::string& rater : flags.exclude) request.add_exclude_raters(rater);
  request.set_exclude_flagged(flags.flagged);
  request.set_edits_as_sft(flags.sft);
  request.set_pair_ratings(flags.pair_ratings);
  return CallAndPrint<v1::FreezeSetRequest, v1::ComparisonSet>(
      connection, request, &FeedbackStub::FreezeSet,
      [](const v1::ComparisonSet& set) {
        std::printf("%s version %d: %d lines, %d raters left out, %s\n", set.name().c_str(),
                    static_cast<int>(set.version()), static_cast<int>(set.comparisons()), set.excluded_raters_size(),
                    set.digest().c_str());
      },
      absl::Minutes(10));
}

int Sets(const ConnectionFlags& connection) {
  v1::ListSetsRequest request;
  request.set_project(connection.project);
  request.mutable_page()->set_page_size(1000);
  return CallAndPrint<v1::ListSetsRequest, v1::ListSetsResponse>(
      connection, request, &FeedbackStub::ListSets, [](const v1::ListSetsResponse& response) {
        Table table({"SET", "VERSION", "COMPARISONS", "TIES", "RATERS", "DIGEST", "MADE BY"});
        for (const v1::ComparisonSet& set : response.sets()) {
          table.Row({set.name(), absl::StrCat(set.version()), absl::StrCat(set.comparisons()), absl::StrCat(set.ties()),
                     absl::StrCat(set.raters_size()), Short(set.digest()), set.made_by()});
        }
        std::fputs(table.Text().c_str(), stdout);
      });
}

int Forget(const ConnectionFlags& connection, const FeedbackFlags& flags) {
  v1::ForgetRaterRequest request;
  request.set_rater(flags.rater);
  return CallAndPrint<v1::ForgetRaterRequest, v1::ForgetRaterResponse>(
      connection, request, &FeedbackStub::ForgetRater,
      [](const v1::ForgetRaterResponse& response) {
        std::printf("%s: %d judgements removed\n", response.rater().c_str(), static_cast<int>(response.removed()));
        for (const std::string& used : response.used_by()) std::printf("used by %s\n", used.c_str());
        if (!response.used_by().empty())
          std::printf(
              "what was made from them stays as it is: `rlhfctl data delete` and `rlhfctl models delete` remove it\n");
      },
      absl::Minutes(10));
}

}  // namespace

void AddFeedbackCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<FeedbackFlags>();
  auto* feedback = app.add_subcommand("feedback", "People's judgements: comparisons, ratings, edits");
  feedback->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, int (*fn)(const ConnectionFlags&, const FeedbackFlags&)) {
    auto* command = feedback->add_subcommand(name, help);
    command->callback([=, &connection] { *run = [=, &connection] { return fn(connection, *flags); }; });
    return command;
  };
  const auto from = [&](CLI::App* command) {
    auto* job = command->add_option("--job", flags->job, "A collect job, or a pipeline that has one");
    auto* set = command->add_option("--set", flags->set, "An imported set");
    job->excludes(set);
  };

  auto* import =
      add("import",
          "Add comparisons from files to a set; bad lines are named (and make the exit code 1), good ones are kept",
          Import);
  import->add_option("files", flags->files, "JSON lines or a JSON array, plain or gzip; - is the standard input")
      ->required();
  import->add_option("--set", flags->set, "The set, and the data artifact's name")->required();
  import->add_option("--format", flags->format, "auto, plain, messages, transcript, argilla, label-studio or own")
      ->capture_default_str();

  auto* out = add("export", "Write comparisons as JSON lines", Export);
  from(out);
  out->add_option("--format", flags->export_format, "own (everything), plain (chosen and rejected) or sft (edits)")
      ->check(CLI::IsMember({"own", "plain", "sft"}))
      ->capture_default_str();
  out->add_option("--out", flags->out, "File; default: the standard output");
  out->add_option("--exclude-rater", flags->exclude, "Leave out a rater; may be repeated");
  out->add_flag("--planted", flags->planted, "Planted questions too");

  auto* next = add("next", "Show tasks and take them", Next);
  next->add_option("--job", flags->job, "A collect job or a pipeline; default: any open one");
  next->add_option("--limit", flags->limit, "How many")->check(CLI::Range(1, 1000))->capture_default_str();
  next->add_option("--wait", flags->wait, "Seconds to wait for one")->check(CLI::Range(0, 10))->capture_default_str();

  auto* submit = add("submit", "Answer or skip a task", Submit);
  submit->add_option("task", flags->task, "Task id")->required();
  submit->add_option("--job", flags->job, "Its job")->required();
  auto* prefer = submit->add_option("--prefer", flags->prefer, "first, second or tie")
                     ->check(CLI::IsMember({"first", "second", "tie"}));
  submit->add_option("--strength", flags->strength, "0 to 1; how clearly")->check(CLI::Range(0.0, 1.0));
  submit->add_option("--rate", flags->ratings, "CRITERION=VALUE of the first answer; may be repeated");
  submit->add_option("--rate-second", flags->second_ratings, "The same of the second");
  submit->add_option("--written", flags->written, "Your own answer, or the better version");
  submit->add_option("--comment", flags->comment, "Why");
  submit->add_flag("--skip", flags->skip, "Give the task back without an answer")->excludes(prefer);

  add("stats", "How far the collecting is", Stats)
      ->add_option("--job", flags->job, "Collect job or pipeline")
      ->required();
  from(add("agreement", "How far raters agree with each other and with planted questions", Agreement));

  auto* freeze = add("freeze", "Make an immutable, versioned set", Freeze);
  from(freeze);
  freeze->add_option("--name", flags->name, "Of the set and its data artifact")->required();
  freeze->add_option("--exclude-rater", flags->exclude, "Leave out a rater; may be repeated");
  freeze->add_flag("--exclude-flagged", flags->flagged, "Leave out raters that the agreement report flags");
  auto* edits = freeze->add_flag("--edits", flags->sft, "SFT data of the edits and written answers instead");
  freeze
      ->add_flag("--pair-ratings", flags->pair_ratings,
                 "Also compare the answers to a prompt that one rater rated each by itself")
      ->excludes(edits);
  feedback->add_subcommand("sets", "List sets")->callback([=, &connection] {
    *run = [&connection] { return Sets(connection); };
  });
  add("forget", "Remove a rater's judgements; lists the sets and models that used them", Forget)
      ->add_option("rater", flags->rater, "Pseudonym, or the subject of their token")
      ->required();
}

}  // namespace rlhf::cli
