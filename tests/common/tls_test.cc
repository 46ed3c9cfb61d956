#include "common/tls.h"

#include <string>

#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "common/certificate_metrics.h"
#include "common/durable_file.h"
#include "common/fleet_names.h"
#include "common/metrics.h"
#include "common/openssl_ptr.h"
#include "tests/testing/certificates.h"

namespace rlhf {
namespace {

using testing::HasSubstr;

TEST(SpiffeIdTest, Parses) {
  const auto id = ParseSpiffeId("spiffe://rlhf.local/role/rollout_worker/instance/worker-3");
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(id->domain, "rlhf.local");
  EXPECT_EQ(id->role, "rollout_worker");
  EXPECT_EQ(id->instance, "worker-3");
}

TEST(SpiffeIdTest, RefusesEverythingElse) {
  for (const char* bad : {"", "spiffe://", "spiffe://d/role/r/instance/", "spiffe://d/role//instance/i",
                          "spiffe://d/instance/i/role/r", "https://d/role/r/instance/i",
                          "spiffe://d/role/r/instance/i/x", "spiffe://d/role/r/x/i", "spiffe://d/x/r/instance/i"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseSpiffeId(bad).status())) << bad;
  }
}

TEST(SpiffeIdTest, ACertificateSpeaksForItsInstanceAndItsSet) {
  EXPECT_TRUE(SpeaksFor("learner-0", "learner-0"));
  EXPECT_TRUE(SpeaksFor("learner", "learner-0"));
  EXPECT_TRUE(SpeaksFor("reward", "reward-7c9f-x2x"));
  for (const char* other : {"", "learner-", "learner-1", "learner-00", "rollout-0", "xlearner-0"})
    EXPECT_FALSE(SpeaksFor("learner-0", other)) << other;
  EXPECT_FALSE(SpeaksFor("", "-x"));
}

TEST(CertificatesTest, NamesThatMeanSomethingElsewhereAreRefused) {
  const auto ca = MakeCertificateAuthority("test", 1);
  ASSERT_TRUE(ca.ok());
  EXPECT_FALSE(IssueCertificate(*ca, "test", "learner", "a,URI:spiffe://test/role/coordinator/instance/b", {}, 1).ok());
  EXPECT_FALSE(IssueCertificate(*ca, "test", "learner/x", "a", {}, 1).ok());
  EXPECT_FALSE(IssueCertificate(*ca, "test", "learner", "", {}, 1).ok());
  EXPECT_FALSE(IssueCertificate(*ca, "test", "learner", "a", {"host,DNS:other"}, 1).ok());
  EXPECT_TRUE(IssueCertificate(*ca, "test", "learner", "a", {"node-1.example", "10.0.0.1", "::1"}, 1).ok());
  EXPECT_FALSE(IssueCertificate({}, "test", "learner", "a", {}, 1).ok());
}

TEST(CertificatesTest, HoldWhereAClockIsAnHourBehind) {
  const auto ca = MakeCertificateAuthority("test", 1);
  ASSERT_TRUE(ca.ok());
  const auto made = IssueCertificate(*ca, "test", "learner", "a", {}, 1);
  ASSERT_TRUE(made.ok());
  std::time_t an_hour_ago = std::time(nullptr) - 3600;
  for (const std::string& pem : {ca->cert_pem, made->cert_pem}) {
    const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    const X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
    ASSERT_NE(certificate, nullptr);
    EXPECT_LT(X509_cmp_time(X509_get0_notBefore(certificate.get()), &an_hour_ago), 0);
  }
}

TEST(CertificatesTest, TheirEndsAreExportedAsTheirFilesSayIt) {
  TestCertificates certificates;
  const std::string fleet = certificates.dir().File("fleet.pem"), ca = certificates.dir().File("ca.pem");
  const auto issue = [&](int days) {
    const auto made = IssueCertificate(certificates.ca(), "test", "learner", "l0", {}, days);
    ASSERT_TRUE(made.ok()) << made.status();
    ASSERT_TRUE(WriteFileDurably(fleet, made->cert_pem).ok());
  };
  MetricsRegistry metrics("learner");
  ExportFleetCertificates({.ca_file = ca, .cert_file = fleet}, &metrics);
  const auto ends = [&](const std::string& label) {
    const std::string text = metrics.Text(),
                      series = "\nrlhf_certificate_expiry_timestamp_seconds{certificate=\"" + label + "\"} ";
    const size_t at = text.find(series);
    return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size()));
  };
  const double now = absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
  EXPECT_EQ(ends("fleet"), 0) << "no file is there";
  issue(10);
  EXPECT_NEAR(ends("fleet"), now + 10 * 86400, 3 * 3600);
  EXPECT_NEAR(ends("ca"), now + 86400, 3 * 3600);
  issue(20);
  EXPECT_NEAR(ends("fleet"), now + 20 * 86400, 3 * 3600) << "the file was replaced";
  MetricsRegistry trial("learner");
  ExportFleetCertificates({.insecure = true}, &trial);
  EXPECT_EQ(trial.Text().find("rlhf_certificate_expiry"), std::string::npos);
}

TEST(CredentialsTest, SayWhichFileIsWrong) {
  TestCertificates certificates;
  const TlsFiles good = certificates.Issue("learner", "one");
  const TlsFiles other = certificates.Issue("learner", "two");
  EXPECT_TRUE(MakeServerCredentials(good, true).ok());
  EXPECT_TRUE(MakeChannelCredentials(good).ok());
  EXPECT_TRUE(MakeChannelCredentials(certificates.CaOnly()).ok());

  const auto error = [](TlsFiles files) { return std::string(MakeServerCredentials(files, true).status().message()); };
  TlsFiles files = good;
  files.key_file = other.key_file;
  EXPECT_THAT(error(files), HasSubstr("does not belong to certificate"));
  files.key_file = good.cert_file;
  EXPECT_THAT(error(files), HasSubstr("expected a PEM private key"));
  files.key_file = certificates.dir().File("none");
  EXPECT_THAT(error(files), HasSubstr("no such file"));
  files.key_file = "";
  EXPECT_THAT(error(files), HasSubstr("no certificate and key files"));
  EXPECT_THAT(std::string(MakeChannelCredentials(files).status().message()), HasSubstr("give both files or none"));
  files = good;
  files.ca_file = good.key_file;
  EXPECT_THAT(error(files), HasSubstr("expected a PEM certificate"));
  EXPECT_THAT(std::string(MakeChannelCredentials({}).status().message()), HasSubstr("no CA file"));
}

}  // namespace
}  // namespace rlhf
