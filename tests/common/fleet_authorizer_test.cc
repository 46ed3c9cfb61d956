// Who is let in by a certificate: its domain, its role, and what a listener serves at all.
#include "common/fleet_authorizer.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/status_util.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

std::string IdOf(const std::string& role, const std::string& domain = "here") {
  return absl::StrCat("spiffe://", domain, "/role/", role, "/instance/one");
}

TEST(FleetAuthorizerTest, ACertificateIsItsInstanceAndRole) {
  for (const std::string domain : {"here", ""}) {
    const auto caller = CallerOfCertificate(IdOf("learner"), domain);
    ASSERT_TRUE(caller.ok()) << caller.status();
    EXPECT_EQ(caller->subject, "one");
    EXPECT_EQ(caller->role, "learner");
    EXPECT_EQ(caller->project, "");
  }
}

TEST(FleetAuthorizerTest, WithoutAnIdOfThisDomainNobodyIsKnown) {
  for (const std::string& id : {std::string(), std::string("spiffe://here/learner"), IdOf("learner", "elsewhere")}) {
    const absl::Status refused = CallerOfCertificate(id, "here").status();
    EXPECT_TRUE(absl::IsUnauthenticated(refused)) << id << ": " << refused;
    EXPECT_EQ(ReasonOf(refused), v1::UNAUTHENTICATED_CALLER);
  }
  EXPECT_THAT(std::string(CallerOfCertificate(IdOf("learner", "elsewhere"), "here").status().message()),
              HasSubstr("trust domain here, found elsewhere"));
}

TEST(FleetAuthorizerTest, AListenerServesOneRole) {
  const Authorizer authorize = AuthorizeOneRole("learner", {"a.Service", "b.Service"}, "here");
  for (const std::string method : {"/a.Service/Get", "/b.Service/Get"}) {
    EXPECT_TRUE(authorize(method, "", IdOf("learner")).ok()) << method;
    const absl::Status refused = authorize(method, "a token", IdOf("coordinator")).status();
    EXPECT_TRUE(absl::IsPermissionDenied(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr("is for the role learner; the certificate's role is coordinator"));
    EXPECT_TRUE(absl::IsUnauthenticated(authorize(method, "a token", IdOf("learner", "elsewhere")).status()));
  }
  for (const std::string method : {"/a.ServiceToo/Get", "/a/Service/Get", "/c.Service/Get", "a.Service/Get", ""}) {
    const absl::Status refused = authorize(method, "", IdOf("learner")).status();
    EXPECT_TRUE(absl::IsPermissionDenied(refused)) << method << ": " << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("is not served here"));
  }
}

TEST(FleetAuthorizerTest, HealthIsForEveryMember) {
  const Authorizer authorize = AuthorizeOneRole("learner", {"a.Service"}, "here");
  for (const std::string method : {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}) {
    EXPECT_TRUE(authorize(method, "", IdOf("visitor")).ok()) << method;
    EXPECT_TRUE(absl::IsUnauthenticated(authorize(method, "", IdOf("learner", "elsewhere")).status())) << method;
    EXPECT_TRUE(absl::IsUnauthenticated(authorize(method, "", "").status())) << method;
  }
}

}  // namespace
}  // namespace rlhf
