#include "common/certificate_metrics.h"

#include <openssl/asn1.h>
#include <openssl/pem.h>

#include <ctime>

#include <prometheus/gauge.h>

#include "absl/status/statusor.h"
#include "common/durable_file.h"
#include "common/openssl_ptr.h"

namespace rlhf {
namespace {

double ExpiryOf(const std::string& pem_file) {
  const absl::StatusOr<std::string> pem = ReadFile(pem_file);
  if (!pem.ok()) return 0;
  const BioPtr bio(BIO_new_mem_buf(pem->data(), static_cast<int>(pem->size())));
  const X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  std::tm tm{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &tm) != 1) return 0;
  return static_cast<double>(timegm(&tm));
}

}  // namespace

void ExportCertificates(const std::map<std::string, std::string>& files, MetricsRegistry* metrics) {
  for (const auto& [label, file] : files) {
    metrics
        ->Gauge("rlhf_certificate_expiry_timestamp_seconds",
                "When a certificate of this process ends; 0 when unreadable.", {{"certificate", label}})
        .Set(ExpiryOf(file));
  }
}

void ExportFleetCertificates(const TlsFiles& files, MetricsRegistry* metrics) {
  if (files.insecure) return;
  metrics->OnCollect(
      [certificates = std::map<std::string, std::string>{{"fleet", files.cert_file}, {"ca", files.ca_file}}, metrics] {
        ExportCertificates(certificates, metrics);
      });
}

}  // namespace rlhf
