// A job that validates and then waits for a learner that never comes.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "client/cpp/artifact_cache.h"
#include "common/durable_file.h"
#include "common/status_util.h"
#include "rlhf/v1/job_service.pb.h"

namespace rlhf::coordinator {

inline absl::Status UploadWaitingJobInputs(const std::shared_ptr<grpc::Channel>& channel, const std::string& scratch) {
  const std::string model = scratch + "/tiny-model", data = scratch + "/tiny-data.jsonl";
  RLHF_RETURN_IF_ERROR(MakeDirs(model));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(
      model + "/config.json",
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":16,"intermediate_size":32,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"num_key_value_heads":2,"vocab_size":64,"max_position_embeddings":128,"rms_norm_eps":1e-5,"rope_theta":10000.0})"));
  RLHF_RETURN_IF_ERROR(WriteFileDurably(data, "{\"prompt\":\"a\",\"response\":\"b\"}\n"));
  RLHF_RETURN_IF_ERROR(client::UploadArtifact(channel, model, "model", "default", "tiny").status());
  return client::UploadArtifact(channel, data, "data", "default", "tiny-data").status();
}

inline v1::SubmitJobRequest WaitingJob(const std::string& name) {
  v1::SubmitJobRequest request;
  request.set_request_id("request-" + name);
  v1::JobSpec* spec = request.mutable_spec();
  spec->set_name(name);
  v1::SftSpec* sft = spec->mutable_sft();
  sft->set_model("tiny");
  sft->set_data("tiny-data");
  sft->set_steps(1);
  sft->set_batch_size(1);
  return request;
}

}  // namespace rlhf::coordinator
