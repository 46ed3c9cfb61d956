#include "cli/certificate_check.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf::cli {

absl::StatusOr<absl::Time> ExpiryOfFile(const std::string& pem_file) {
  RLHF_ASSIGN_OR_RETURN(const std::string pem, ReadFile(pem_file));
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())),
                                                      BIO_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr),
                                                                X509_free);
  ERR_clear_error();
  std::tm tm{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &tm) != 1)
    return absl::InvalidArgumentError(absl::StrCat(pem_file, ": expected a PEM certificate, found none"));
  return absl::FromTM(tm, absl::UTCTimeZone());
}

absl::StatusOr<std::string> CaFileOf(const ConnectionFlags& flags) {
  if (flags.insecure) return std::string();
  if (!flags.ca_file.empty() || !flags.address.empty()) return flags.ca_file;
  RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.context_file));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("insecure", false)) return std::string();
  const std::filesystem::path file = json.value("ca_file", "");
  if (file.empty() || file.is_absolute()) return file.string();
  return (std::filesystem::path(flags.context_file).parent_path() / file).string();
}

}  // namespace rlhf::cli
