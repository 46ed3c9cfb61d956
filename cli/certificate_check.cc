#include "cli/certificate_check.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <arpa/inet.h>

#include <ctime>
#include <filesystem>
#include <memory>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/durable_file.h"
#include "common/fleet_names.h"
#include "common/openssl_ptr.h"
#include "common/status_util.h"

namespace rlhf::cli {
namespace {

constexpr absl::string_view kAuthorityName = "rlhf CA ";  // then its domain

X509Ptr FirstOf(const std::string& pem) {
  const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  return certificate;
}

absl::StatusOr<X509Ptr> ReadCertificate(const std::string& pem_file) {
  RLHF_ASSIGN_OR_RETURN(const std::string pem, ReadFile(pem_file));
  X509Ptr certificate = FirstOf(pem);
  if (certificate == nullptr)
    return absl::InvalidArgumentError(absl::StrCat(pem_file, ": expected a PEM certificate, found none"));
  return certificate;
}

std::string TextOf(const ASN1_STRING* text) {
  return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                     static_cast<size_t>(ASN1_STRING_length(text)));
}

std::string AddressOf(const ASN1_OCTET_STRING* address) {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(ASN1_STRING_length(address) == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(address), text, sizeof(text));
  return text;
}

}  // namespace

absl::StatusOr<absl::Time> ExpiryOfFile(const std::string& pem_file) {
  RLHF_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadCertificate(pem_file));
  std::tm tm{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &tm) != 1)
    return absl::InvalidArgumentError(absl::StrCat(pem_file, ": expected a certificate with an end, found none"));
  return absl::FromTM(tm, absl::UTCTimeZone());
}

absl::StatusOr<CertificateNames> NamesOfFile(const std::string& pem_file) {
  RLHF_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadCertificate(pem_file));
  const std::unique_ptr<GENERAL_NAMES, OpenSslDeleter<GENERAL_NAMES_free>> names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr)));
  CertificateNames found;
  std::string uri;
  for (int i = 0; names != nullptr && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_URI) uri = TextOf(name->d.uniformResourceIdentifier);
    if (name->type == GEN_DNS) found.hosts.push_back(TextOf(name->d.dNSName));
    if (name->type == GEN_IPADD) found.hosts.push_back(AddressOf(name->d.iPAddress));
  }
  absl::StatusOr<FleetIdentity> identity = ParseSpiffeId(uri);
  if (!identity.ok()) return Annotate(identity.status(), pem_file);
  found.identity = *std::move(identity);
  std::vector<std::string> own;
  for (std::string& host : found.hosts) {
    if (host != "localhost" && host != "127.0.0.1" && host != FleetServerName("") &&
        host != FleetServerName(found.identity.role))
      own.push_back(std::move(host));
  }
  found.hosts = std::move(own);
  return found;
}

absl::Status CheckAuthority(const CertificateAuthority& ca, const std::string& domain) {
  const X509Ptr certificate = FirstOf(ca.cert_pem);
  const BioPtr bio(BIO_new_mem_buf(ca.key_pem.data(), static_cast<int>(ca.key_pem.size())));
  const KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  const bool matches =
      certificate != nullptr && key != nullptr && X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!matches) {
    return absl::FailedPreconditionError(
        "ca.key is not the key of the first certificate in ca.pem; where ca.pem holds several, the one that signs "
        "comes "
        "first");
  }
  char name[256] = "";
  X509_NAME_get_text_by_NID(X509_get_subject_name(certificate.get()), NID_commonName, name, sizeof(name));
  absl::string_view of = name;
  if (absl::ConsumePrefix(&of, kAuthorityName) && of != domain) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CA is of the trust domain \"", of, "\", not \"", domain, "\": give --domain ", of));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> CaFileOf(const ConnectionFlags& flags) {
  if (flags.insecure) return std::string();
  if (!flags.ca_file.empty() || !flags.address.empty()) return flags.ca_file;
  RLHF_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.context_file));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto ca_file = json.find("ca_file"), insecure = json.find("insecure");
  if (ca_file == json.end() || !ca_file->is_string() || (insecure != json.end() && *insecure == true))
    return std::string();
  const std::filesystem::path file = ca_file->get<std::string>();
  if (file.empty() || file.is_absolute()) return file.string();
  return (std::filesystem::path(flags.context_file).parent_path() / file).string();
}

}  // namespace rlhf::cli
