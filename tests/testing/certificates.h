// A throw-away CA with its files on disk, for tests of TLS.
#pragma once

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "common/durable_file.h"
#include "common/tls.h"
#include "tests/testing/scratch_dir.h"

namespace rlhf {

class TestCertificates {
 public:
  explicit TestCertificates(const std::string& domain = "test") : domain_(domain) {
    auto ca = MakeCertificateAuthority(domain, /*days=*/1);
    EXPECT_TRUE(ca.ok()) << ca.status();
    if (ca.ok()) ca_ = *ca;
    Write("ca.pem", ca_.cert_pem);
  }

  TlsFiles Issue(const std::string& role, const std::string& instance, const std::vector<std::string>& hosts = {}) {
    return IssueOf(domain_, role, instance, hosts);
  }
  // By the same CA, of another installation.
  TlsFiles IssueOf(const std::string& domain, const std::string& role, const std::string& instance,
                   const std::vector<std::string>& hosts = {}) {
    auto issued = IssueCertificate(ca_, domain, role, instance, hosts, /*days=*/1);
    EXPECT_TRUE(issued.ok()) << issued.status();
    const std::string stem = (domain == domain_ ? "" : domain + "-") + role + "-" + instance;
    if (issued.ok()) {
      Write(stem + ".pem", issued->cert_pem);
      Write(stem + ".key", issued->key_pem);
    }
    return {
        .ca_file = dir_.File("ca.pem"), .cert_file = dir_.File(stem + ".pem"), .key_file = dir_.File(stem + ".key")};
  }
  // Trusts the CA, presents nothing.
  TlsFiles CaOnly() const { return {.ca_file = dir_.File("ca.pem")}; }
  const CertificateAuthority& ca() const { return ca_; }
  const ScratchDir& dir() const { return dir_; }

 private:
  void Write(const std::string& name, const std::string& content) {
    const absl::Status status = WriteFileDurably(dir_.File(name), content);
    EXPECT_TRUE(status.ok()) << status;
  }

  const std::string domain_;
  ScratchDir dir_;
  CertificateAuthority ca_;
};

}  // namespace rlhf
