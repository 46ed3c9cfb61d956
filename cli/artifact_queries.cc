#include "cli/artifact_queries.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/pages.h"
#include "rlhf/v1/artifact_service.grpc.pb.h"

namespace rlhf::cli {
namespace {

constexpr size_t kDigits = 64, kFewestDigits = 8;

bool BeginsADigest(absl::string_view reference) {
  if (!absl::ConsumePrefix(&reference, "sha256:") || reference.size() >= kDigits) return false;
  return std::all_of(reference.begin(), reference.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
  });
}

}  // namespace

absl::StatusOr<std::string> WholeReference(const std::shared_ptr<grpc::Channel>& channel,
                                           const std::string& reference) {
  if (!BeginsADigest(reference)) return reference;
  if (reference.size() < sizeof("sha256:") - 1 + kFewestDigits) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a digest, or at least ", kFewestDigits, " digits of one, found \"", reference, "\""));
  }
  v1::ListArtifactsRequest request;
  request.mutable_page()->set_page_size(1000);
  std::vector<std::string> found;
  RLHF_RETURN_IF_ERROR(EachPage(*v1::ArtifactService::NewStub(channel), &v1::ArtifactService::Stub::ListArtifacts,
                                request, [&](const v1::ListArtifactsResponse& page) {
                                  for (const v1::Artifact& artifact : page.artifacts()) {
                                    if (absl::StartsWith(artifact.digest(), reference))
                                      found.push_back(artifact.digest());
                                  }
                                  return true;
                                }));
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  if (found.empty())
    return absl::NotFoundError(absl::StrCat("no artifact has a digest that begins with \"", reference, "\""));
  if (found.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("\"", reference, "\" begins the digests of ", found.size(),
                                                   " artifacts, ", found[0], " among them: give more of it"));
  }
  return found.front();
}

}  // namespace rlhf::cli
