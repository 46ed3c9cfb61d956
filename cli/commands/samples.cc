// samples.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/commands/commands.h"
#include "cli/job_queries.h"
#include "cli/output.h"
#include "common/spec_loader.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct SampleFlags {
  std::string job;
  int64_t step = -1;
  int limit = 20;
};

int Samples(const ConnectionFlags& connection, const SampleFlags& flags) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto stub = v1::JobService::NewStub(*channel);
  const auto job = FindJob(*stub, connection.project, flags.job);
  if (!job.ok()) return Fail(job.status());
  v1::ListSamplesRequest request;
  request.set_job_id(job->id());
  if (flags.step >= 0) request.set_step(flags.step);
  int left = flags.limit;
  Table table({"SAMPLE", "STATE", "SCORE", "PROMPT", "RESPONSE"});
  do {
    request.mutable_page()->set_page_size(std::min(left, 1000));
    v1::ListSamplesResponse response;
    const auto context = CallContext();
    if (const absl::Status status = FromGrpc(stub->ListSamples(context.get(), request, &response)); !status.ok())
      return Fail(status);
    for (const v1::SampleView& view : response.samples()) {
      --left;
      if (connection.output != "table") {
        std::printf("%s\n", ToJson(view, /*pretty=*/false).c_str());
        continue;
      }
      table.Row({absl::StrCat(view.row().id().step(), "/", view.row().id().ordinal(), "/", view.row().id().index()),
                 v1::SampleState_Name(view.row().state()),
                 view.sample().has_score() ? Number(view.sample().score().total()) : "", view.sample().prompt().text(),
                 view.problem().empty() ? view.sample().response_text() : absl::StrCat("(", view.problem(), ")")});
    }
    request.mutable_page()->set_page_token(response.next_page_token());
  } while (left > 0 && !request.page().page_token().empty());
  if (connection.output == "table") std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

}  // namespace

void AddSampleCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<SampleFlags>();
  auto* samples = app.add_subcommand("samples", "A job's samples");
  samples->add_option("job", flags->job, "Job id or name")->required();
  samples->add_option("--step", flags->step, "Only this step's")->check(CLI::NonNegativeNumber);
  samples->add_option("--limit", flags->limit, "At most this many")
      ->check(CLI::Range(1, 10000000))
      ->capture_default_str();
  samples->callback([=, &connection] { *run = [=, &connection] { return Samples(connection, *flags); }; });
}

}  // namespace rlhf::cli
