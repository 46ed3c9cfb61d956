#include "bench/load_generator/simulated_job.h"

#include "absl/strings/str_cat.h"
#include "client/cpp/artifact_cache.h"
#include "client/cpp/channel.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.grpc.pb.h"

namespace rlhf::bench {
namespace {

constexpr int kPrompts = 1000;
constexpr char kConfig[] =
    R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,)"
    R"("num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,)"
    R"("max_position_embeddings":8192,"rms_norm_eps":1e-5,"rope_theta":10000.0})";

}  // namespace

absl::Status WriteSimulatedInputs(const std::string& scratch) {
  RLHF_RETURN_IF_ERROR(MakeDirs(scratch + "/model"));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(scratch + "/model/config.json", kConfig));
  std::string lines;
  for (int i = 0; i < kPrompts; ++i)
    absl::StrAppend(&lines, "{\"id\":\"p", i, "\",\"prompt\":\"What is the answer to question number ", i, "?\"}\n");
  return WriteFileDurably(scratch + "/prompts.jsonl", lines);
}

absl::StatusOr<std::string> SubmitSimulatedJob(const std::shared_ptr<grpc::Channel>& api, const LoadOptions& options,
                                               const std::string& scratch, const std::string& name, int64_t steps,
                                               int priority) {
  const std::string model = scratch + "/model", prompts = scratch + "/prompts.jsonl";
  RLHF_RETURN_IF_ERROR(WriteSimulatedInputs(scratch));
  RLHF_ASSIGN_OR_RETURN(const v1::Artifact policy, client::UploadArtifact(api, model, "model", "default", ""));
  RLHF_ASSIGN_OR_RETURN(const v1::Artifact data, client::UploadArtifact(api, prompts, "data", "default", ""));

  v1::SubmitJobRequest request;
  request.set_request_id(absl::StrCat("load-", name));
  v1::JobSpec& spec = *request.mutable_spec();
  spec.set_name(name);
  spec.set_priority(priority);
  v1::PpoSpec& ppo = *spec.mutable_ppo();
  ppo.set_policy(policy.digest());
  ppo.set_critic(policy.digest());
  ppo.set_prompts(data.digest());
  ppo.set_steps(static_cast<int32_t>(steps));
  ppo.set_prompts_per_step(options.samples_per_step);
  ppo.set_max_policy_lag(1);
  ppo.set_checkpoint_every(options.checkpoint_every);
  ppo.mutable_sampling()->set_max_new_tokens(options.response_tokens);
  v1::RewardComponent& component = *ppo.mutable_scorer()->add_components();
  component.set_name("length");
  component.mutable_length()->set_max_tokens(options.response_tokens);
  v1::SubmitJobResponse response;
  const auto context = client::MakeContext(absl::Seconds(30));
  RLHF_RETURN_IF_ERROR(FromGrpc(v1::JobService::NewStub(api)->SubmitJob(context.get(), request, &response)));
  return response.job().id();
}

absl::StatusOr<v1::GetLedgerResponse> CheckLedger(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id,
                                                  bool check) {
  v1::GetLedgerRequest request;
  request.set_job_id(job_id);
  request.set_check(check);
  v1::GetLedgerResponse response;
  const auto context = client::MakeContext(absl::Minutes(5));
  RLHF_RETURN_IF_ERROR(FromGrpc(v1::JobService::NewStub(api)->GetLedger(context.get(), request, &response)));
  return response;
}

absl::StatusOr<v1::Job> GetJob(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id) {
  v1::GetJobRequest request;
  request.set_job_id(job_id);
  v1::Job response;
  const auto context = client::MakeContext(absl::Seconds(30));
  RLHF_RETURN_IF_ERROR(FromGrpc(v1::JobService::NewStub(api)->GetJob(context.get(), request, &response)));
  return response;
}

absl::StatusOr<v1::ExplainJobResponse> Explain(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id) {
  v1::ExplainJobRequest request;
  request.set_job_id(job_id);
  v1::ExplainJobResponse response;
  const auto context = client::MakeContext(absl::Seconds(30));
  RLHF_RETURN_IF_ERROR(FromGrpc(v1::JobService::NewStub(api)->ExplainJob(context.get(), request, &response)));
  return response;
}

absl::Status CancelJob(const std::shared_ptr<grpc::Channel>& api, const std::string& job_id) {
  v1::CancelJobRequest request;
  request.set_job_id(job_id);
  request.set_reason("the load run is over");
  v1::Job response;
  const auto context = client::MakeContext(absl::Seconds(60));
  return FromGrpc(v1::JobService::NewStub(api)->CancelJob(context.get(), request, &response));
}

}  // namespace rlhf::bench
