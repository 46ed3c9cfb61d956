// submit, validate, list, get, watch, cancel, pause, resume, delete, why.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands/commands.h"
#include "cli/follow.h"
#include "cli/job_queries.h"
#include "cli/kubernetes.h"
#include "cli/kubernetes_names.h"
#include "cli/memory_plan.h"
#include "cli/output.h"
#include "cli/pages.h"
#include "cli/spec_problems.h"
#include "cli/uploads.h"
#include "cli/utf8.h"
#include "common/durable_file.h"
#include "common/printable.h"
#include "common/spec_loader.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

struct SpecFlags {
  std::string file;
  std::vector<std::string> set;
  std::string request_id;
  bool follow = false, dry_run = false, kubernetes = false;
  OwnFleet fleet;
};

std::string RandomId() {
  std::random_device device;
  std::string out;
  for (int i = 0; i < 4; ++i) absl::StrAppendFormat(&out, "%08x", device());
  return out;
}

absl::StatusOr<v1::JobSpec> LoadSpec(const ConnectionFlags& connection, const SpecFlags& flags) {
  std::map<std::string, std::string> variables;
  for (const std::string& pair : flags.set) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(absl::StrCat("--set: expected key=value, found \"", pair, "\""));
    }
    variables[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  v1::JobSpec spec;
  const absl::StatusOr<std::string> yaml = ReadFile(flags.file);
  if (!yaml.ok()) return Here(yaml.status());
  RLHF_RETURN_IF_ERROR(CheckUtf8(*yaml, flags.file));
  RLHF_RETURN_IF_ERROR(ParseYaml(*yaml, flags.file, variables, &spec));
  if (spec.project().empty()) spec.set_project(connection.project);
  return spec;
}

std::string BaseDir(const std::string& file) {
  return std::filesystem::absolute(file).parent_path().string();
}

int PrintProblems(const ConnectionFlags& connection, const std::string& file, const v1::ValidateJobResponse& response) {
  if (connection.output != "table") {
    PrintMessage(connection.output, response);
  } else if (response.problems().empty()) {
    std::printf("%s: valid\n", file.c_str());
  } else {
    const std::string yaml = ReadFile(file).value_or("");
    for (const auto& problem : response.problems())
      std::fprintf(stderr, "%s\n", ProblemText(file, yaml, problem).c_str());
  }
  return response.problems().empty() ? v1::EXIT_OK : v1::EXIT_USAGE;
}

// One line a model of the job that lies beside its file; models that are known by name or digest only are left out.
void PrintMemory(const std::string& base_dir, const v1::JobSpec& spec) {
  for (const MemoryEstimate& estimate : EstimateMemory(spec, base_dir)) {
    std::printf(
        "%s: a learner takes about %s, a rollout worker of 64 slots %s, a reward server %s (rlhfctl plan says of "
        "what)\n",
        estimate.where.c_str(), Bytes(estimate.learner).c_str(), Bytes(estimate.rollout_worker).c_str(),
        Bytes(estimate.reward_server).c_str());
  }
}

int Validate(const ConnectionFlags& connection, const SpecFlags& flags) {
  auto spec = LoadSpec(connection, flags);
  if (!spec.ok()) return Fail(spec.status());
  const v1::JobSpec named = *spec;  // before its files have digests
  const auto files = UploadFileReferences(nullptr, BaseDir(flags.file), spec->project(), &*spec);
  if (!files.ok()) return Fail(files.status());
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  v1::ValidateJobRequest request;
  for (const v1::Artifact& file : *files) request.add_uploads(file.digest());
  *request.mutable_spec() = *spec;
  v1::ValidateJobResponse response;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::JobService::NewStub(*channel)->ValidateJob(context.get(), request, &response));
  if (!status.ok()) return Fail(status);
  const int code = PrintProblems(connection, flags.file, response);
  if (code == v1::EXIT_OK && connection.output == "table") PrintMemory(BaseDir(flags.file), named);
  return code;
}

int Follow(const ConnectionFlags& connection, const std::shared_ptr<grpc::Channel>& channel,
           const std::string& job_id) {
  auto job = FollowJob(channel, job_id, FollowOptionsForStdout(connection.output));
  if (!job.ok()) return Fail(job.status());
  if (connection.output != "table") {
    std::printf("%s\n", ToJson(*job, /*pretty=*/false).c_str());
  } else {
    std::printf("%s\n", Verdict(*job).c_str());
  }
  return ExitCodeOf(*job);
}

// The file parsed and filled in, its references to files looked at; nobody is asked and nothing is sent.
int DryRun(const ConnectionFlags& connection, const SpecFlags& flags, v1::JobSpec spec) {
  if (auto files = UploadFileReferences(nullptr, BaseDir(flags.file), spec.project(), &spec); !files.ok())
    return Fail(files.status());
  if (connection.output != "table") {
    PrintMessage(connection.output, spec);
  } else {
    std::fputs(ToYaml(spec).c_str(), stdout);
  }
  return v1::EXIT_OK;
}

// The job as it is submitted inside the cluster: its references must be names there, not files here.
int PrintManifests(SpecFlags flags, const v1::JobSpec& spec) {
  const std::string yaml = ToYaml(spec);
  if (yaml.find("file:") != std::string::npos) {
    return Fail(
        absl::InvalidArgumentError("the job names files of this machine: push them (rlhfctl models push, data push) "
                                   "and name their aliases instead"));
  }
  if (const absl::Status names = CheckOwnFleet(flags.fleet); !names.ok()) return Fail(names);
  if (spec.learners().has_ranks()) flags.fleet.learners = spec.learners().ranks();
  std::fputs(OwnFleetManifest(FleetName(spec.name(), yaml, flags.request_id), yaml, flags.fleet).c_str(), stdout);
  return v1::EXIT_OK;
}

// A job that was refused, with the lines of its file: a submit's error names fields alone.
int FailInvalid(const ConnectionFlags& connection, const std::shared_ptr<grpc::Channel>& channel,
                const std::string& file, const v1::JobSpec& spec, const absl::Status& refused) {
  v1::ValidateJobRequest request;
  *request.mutable_spec() = spec;
  v1::ValidateJobResponse response;
  const auto context = CallContext();
  const grpc::Status status = v1::JobService::NewStub(channel)->ValidateJob(context.get(), request, &response);
  if (!status.ok() || response.problems().empty()) return Fail(refused);
  return PrintProblems(connection, file, response);
}

int Submit(const ConnectionFlags& connection, const SpecFlags& flags) {
  auto spec = LoadSpec(connection, flags);
  if (!spec.ok()) return Fail(spec.status());
  if (flags.dry_run) return DryRun(connection, flags, *spec);
  if (flags.kubernetes) return PrintManifests(flags, *spec);
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto uploaded = UploadFileReferences(*channel, BaseDir(flags.file), spec->project(), &*spec);
  if (!uploaded.ok()) return Fail(uploaded.status());
  v1::SubmitJobRequest request;
  request.set_request_id(flags.request_id.empty() ? RandomId() : flags.request_id);
  *request.mutable_spec() = *spec;
  v1::SubmitJobResponse response;
  const auto context = CallContext(absl::Seconds(60));
  const absl::Status status = FromGrpc(v1::JobService::NewStub(*channel)->SubmitJob(context.get(), request, &response));
  if (ReasonOf(status) == v1::INVALID_SPEC)
    return FailInvalid(connection, *channel, flags.file, request.spec(), status);
  if (!status.ok()) return Fail(status);
  if (connection.output != "table") {
    if (!flags.follow) PrintMessage(connection.output, response.job());
  } else {
    std::printf("job %s submitted\n", response.job().id().c_str());
    std::fflush(stdout);
  }
  return flags.follow ? Follow(connection, *channel, response.job().id()) : static_cast<int>(v1::EXIT_OK);
}

std::string KindOf(const v1::JobSpec& spec) {
  const auto* field = spec.GetDescriptor()->FindFieldByNumber(spec.kind_case());
  return field == nullptr ? "" : field->name();
}

int List(const ConnectionFlags& connection, bool stages) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  const auto stub = v1::JobService::NewStub(*channel);
  v1::ListJobsRequest request;
  request.set_include_stages(stages);
  request.set_project(connection.project);
  const auto jobs = AllPages<v1::Job>(
      *stub, &v1::JobService::Stub::ListJobs, request,
      [](const v1::ListJobsResponse& page) -> const auto& { return page.jobs(); });
  if (!jobs.ok()) return Fail(jobs.status());
  if (connection.output != "table") {
    PrintMessages(connection.output, *jobs);
    return v1::EXIT_OK;
  }
  Table table({"JOB", "KIND", "STATE", "STEP", "REASON"});
  for (const v1::Job& job : *jobs) {
    table.Row({job.id(), KindOf(job.spec()), v1::JobState_Name(job.state()),
               job.total_steps() > 0 ? absl::StrCat(job.step(), "/", job.total_steps()) : "", job.reason()});
  }
  std::fputs(table.Text().c_str(), stdout);
  return v1::EXIT_OK;
}

int Get(const ConnectionFlags& connection, const std::string& id) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto job = FindJob(*v1::JobService::NewStub(*channel), connection.project, id);
  if (!job.ok()) return Fail(job.status());
  if (connection.output != "table") {
    PrintMessage(connection.output, *job);
  } else {
    std::fputs(ToYaml(*job).c_str(), stdout);
  }
  return v1::EXIT_OK;
}

int Watch(const ConnectionFlags& connection, const std::string& id) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto job = FindJob(*v1::JobService::NewStub(*channel), connection.project, id);
  if (!job.ok()) return Fail(job.status());
  return Follow(connection, *channel, job->id());
}

// Calls that take a job and give it back changed.
template <typename Request, typename Response, typename Method>
int Change(const ConnectionFlags& connection, const std::string& id, const char* done, Method method,
           Request request = {}) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto job = FindJob(*v1::JobService::NewStub(*channel), connection.project, id);
  if (!job.ok()) return Fail(job.status());
  request.set_job_id(job->id());  // whatever it has come to by now: a running job's etag changes with every step
  Response response;
  const auto context = CallContext();
  const auto stub = v1::JobService::NewStub(*channel);
  if (const absl::Status status = FromGrpc(method(*stub, context.get(), request, &response)); !status.ok())
    return Fail(status);
  if (connection.output != "table") {
    PrintMessage(connection.output, response);
  } else {
    std::printf("job %s %s\n", job->id().c_str(), done);
  }
  return v1::EXIT_OK;
}

int Why(const ConnectionFlags& connection, const std::string& id) {
  auto channel = Connect(connection);
  if (!channel.ok()) return Fail(channel.status());
  auto job = FindJob(*v1::JobService::NewStub(*channel), connection.project, id);
  if (!job.ok()) return Fail(job.status());
  v1::ExplainJobRequest request;
  request.set_job_id(job->id());
  v1::ExplainJobResponse response;
  const auto context = CallContext();
  const absl::Status status =
      FromGrpc(v1::JobService::NewStub(*channel)->ExplainJob(context.get(), request, &response));
  if (!status.ok()) return Fail(status);
  if (connection.output != "table") {
    PrintMessage(connection.output, response);
    return v1::EXIT_OK;
  }
  std::printf("%s is %s\n", job->id().c_str(), v1::JobState_Name(job->state()).c_str());
  std::printf("waits for: %s (since %d s)\n", Printable(response.waits_for()).c_str(),
              static_cast<int>(response.since_seconds()));
  for (const std::string& holder : response.held_by()) std::printf("held by: %s\n", Printable(holder).c_str());
  if (!response.what_to_do().empty()) std::printf("do: %s\n", response.what_to_do().c_str());
  return v1::EXIT_OK;
}

}  // namespace

void AddJobCommands(CLI::App& app, ConnectionFlags& connection, Run* run) {
  const auto flags = std::make_shared<SpecFlags>();
  const auto id = std::make_shared<std::string>();
  const auto stages = std::make_shared<bool>(false);

  auto* submit = app.add_subcommand("submit", "Submit a job from a YAML file");
  submit->add_option("file", flags->file, "The job's YAML file")->required();
  submit->add_option("--set", flags->set, "key=value for ${key} in the file; may be repeated");
  submit->add_option("--request-id", flags->request_id,
                     "Submits at most once under this id (default: a new one); with --kubernetes part of the name");
  submit->add_flag("--follow", flags->follow, "Follow it to its end; the exit code is the job's");
  submit->add_flag("--kubernetes", flags->kubernetes,
                   "Print ConfigMaps and a JobSet that run the job with a fleet of its own, for kubectl apply -f -");
  submit->add_option("--namespace", flags->fleet.name_space, "With --kubernetes")->capture_default_str();
  submit->add_option("--registry", flags->fleet.registry, "With --kubernetes: images are REGISTRY/ROLE:TAG")
      ->capture_default_str();
  submit->add_option("--tag", flags->fleet.tag, "With --kubernetes: of learners and rollout workers")
      ->capture_default_str();
  submit->add_option("--rollout-workers", flags->fleet.rollout_workers, "With --kubernetes")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  submit->add_flag("--dry-run", flags->dry_run, "Show what would be submitted, and send nothing");
  submit->callback([=, &connection] { *run = [=, &connection] { return Submit(connection, *flags); }; });

  auto* validate = app.add_subcommand("validate", "Check a job's YAML file without submitting it");
  validate->add_option("file", flags->file, "The job's YAML file")->required();
  validate->add_option("--set", flags->set, "key=value for ${key} in the file; may be repeated");
  validate->callback([=, &connection] { *run = [=, &connection] { return Validate(connection, *flags); }; });

  auto* list = app.add_subcommand("list", "List jobs, newest first");
  list->add_flag("--stages", *stages, "Also the stages of pipelines");
  list->callback([=, &connection] { *run = [=, &connection] { return List(connection, *stages); }; });

  const auto add = [&](const char* name, const char* help,
                       const std::function<int(const ConnectionFlags&, const std::string&)>& fn) {
    auto* command = app.add_subcommand(name, help);
    command->add_option("job", *id, "Job id, or name (the newest of that name)")->required();
    command->callback([=, &connection] { *run = [=, &connection] { return fn(connection, *id); }; });
    return command;
  };
  add("get", "Show a job", Get);
  add("watch", "Follow a job to its end; the exit code is the job's", Watch);
  add("why", "What a job waits for, since when, who holds it, what to do", Why);
  const auto reason = std::make_shared<std::string>();
  add("cancel", "Cancel a job", [reason](const ConnectionFlags& c, const std::string& i) {
    v1::CancelJobRequest request;
    request.set_reason(*reason);
    return Change<v1::CancelJobRequest, v1::Job>(
        c, i, "cancelled",
        [](auto& stub, auto* context, const auto& r, auto* response) { return stub.CancelJob(context, r, response); },
        request);
  })->add_option("--reason", *reason, "Why; in the job's row and the audit log");
  add("pause", "Pause a job", [](const ConnectionFlags& c, const std::string& i) {
    return Change<v1::PauseJobRequest, v1::Job>(c, i, "paused",
                                                [](auto& stub, auto* context, const auto& request, auto* response) {
                                                  return stub.PauseJob(context, request, response);
                                                });
  });
  add("resume", "Resume a paused job", [](const ConnectionFlags& c, const std::string& i) {
    return Change<v1::ResumeJobRequest, v1::Job>(c, i, "resumed",
                                                 [](auto& stub, auto* context, const auto& request, auto* response) {
                                                   return stub.ResumeJob(context, request, response);
                                                 });
  });
  add("delete", "Delete an ended job's rows and payloads", [](const ConnectionFlags& c, const std::string& i) {
    return Change<v1::DeleteJobRequest, v1::DeleteJobResponse>(
        c, i, "deleted", [](auto& stub, auto* context, const auto& request, auto* response) {
          return stub.DeleteJob(context, request, response);
        });
  });
}

}  // namespace rlhf::cli
