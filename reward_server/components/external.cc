#include <algorithm>
#include <cmath>
#include <utility>

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "client/cpp/channel.h"
#include "common/status_util.h"
#include "reward_server/components/interface.h"
#include "rlhf/v1/reward_service.grpc.pb.h"

namespace rlhf::reward {
namespace {

constexpr absl::Duration kLongest = absl::Seconds(50);  // before the coordinator gives the request for scores up

// Whoever submits a job names the server: it is not trusted.
std::shared_ptr<grpc::Channel> ChannelTo(const v1::ExternalComponent& spec) {
  grpc::ChannelArguments arguments;
  client::RefuseCompression(&arguments);
  return grpc::CreateCustomChannel(
      spec.address(),
      spec.plaintext() ? grpc::InsecureChannelCredentials() : grpc::SslCredentials(grpc::SslCredentialsOptions()),
      arguments);
}

class ExternalReward : public Component {
 public:
  ExternalReward(std::string name, const v1::ExternalComponent& spec)
      : name_(std::move(name)), spec_(spec), stub_(v1::ExternalRewardService::NewStub(ChannelTo(spec))) {}

  std::vector<absl::StatusOr<double>> Score(const std::vector<const v1::Sample*>& samples) override {
    v1::ScoreTextsRequest request;
    request.set_component(name_);
    for (const v1::Sample* sample : samples) {
      v1::TextToScore& text = *request.add_texts();
      text.set_prompt(sample->prompt().text());
      text.set_response(sample->response_text());
      text.set_reference(sample->prompt().reference());
      text.set_category(sample->prompt().category());
      *text.mutable_tags() = sample->prompt().tags();
    }
    v1::ScoreTextsResponse response;
    const absl::Duration timeout = absl::Milliseconds(spec_.timeout_ms() > 0 ? spec_.timeout_ms() : 10000);
    const auto context = client::MakeContext(std::min(timeout, kLongest));
    const absl::Status status = FromGrpc(stub_->ScoreTexts(context.get(), request, &response));
    const std::string where = absl::StrCat("external reward \"", name_, "\" at ", spec_.address());
    if (!status.ok()) return std::vector<absl::StatusOr<double>>(samples.size(), Annotate(status, where));
    if (response.values_size() != static_cast<int>(samples.size())) {
      return std::vector<absl::StatusOr<double>>(
          samples.size(), absl::InternalError(absl::StrCat(where, ": expected ", samples.size(), " values, found ",
                                                           response.values_size())));
    }
    std::vector<absl::StatusOr<double>> out;
    for (const double value : response.values()) {
      if (std::isfinite(value)) {
        out.emplace_back(value);
      } else {
        out.emplace_back(absl::InternalError(absl::StrCat(where, ": expected a finite value, found ", value)));
      }
    }
    return out;
  }

 private:
  std::string name_;
  v1::ExternalComponent spec_;
  std::unique_ptr<v1::ExternalRewardService::Stub> stub_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Component>> MakeExternal(const std::string& name, const v1::ExternalComponent& spec) {
  if (spec.address().empty())
    return absl::InvalidArgumentError(
        absl::StrCat("external reward \"", name, "\": expected an address host:port, found none"));
  return std::make_unique<ExternalReward>(name, spec);
}

}  // namespace rlhf::reward
