#include <memory>
#include <utility>

#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/fleet_names.h"
#include "common/openssl_ptr.h"
#include "common/status_util.h"
#include "common/tls.h"

namespace rlhf {
namespace {

absl::Status OpenSslError(absl::string_view what) {
  char text[256] = "no further reason";
  if (const unsigned long code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof(text));
  ERR_clear_error();
  return absl::InternalError(absl::StrCat("cannot ", what, ": ", text));
}

// Clocks of two machines may differ, by an hour where one has the wrong time zone: certificates begin in the past.
constexpr long kBackdateSeconds = 2 * 3600;
constexpr int kSerialBits = 127;

absl::StatusOr<X509Ptr> NewCertificate(const std::string& common_name, EVP_PKEY* key, int days) {
  X509Ptr certificate(X509_new());
  BignumPtr serial(BN_new());
  if (certificate == nullptr || serial == nullptr) return OpenSslError("allocate a certificate");
  const bool ok = X509_set_version(certificate.get(), X509_VERSION_3) == 1 &&
                  BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
                  BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) != nullptr &&
                  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -kBackdateSeconds) != nullptr &&
                  X509_time_adj_ex(X509_getm_notAfter(certificate.get()), days, 0, nullptr) != nullptr &&
                  X509_set_pubkey(certificate.get(), key) == 1 &&
                  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate.get()), "CN", MBSTRING_UTF8,
                                             reinterpret_cast<const unsigned char*>(common_name.data()),
                                             static_cast<int>(common_name.size()), -1, 0) == 1;
  if (!ok) return OpenSslError("fill a certificate");
  return certificate;
}

absl::Status AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509V3_set_ctx_nodb(&context);
  ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return OpenSslError(absl::StrCat("add the certificate extension \"", value, "\""));
  }
  return absl::OkStatus();
}

template <typename Write>
absl::StatusOr<std::string> ToPem(Write write) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  if (bio == nullptr || write(bio.get()) != 1) return OpenSslError("write PEM");
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<std::pair<std::string, std::string>> SignedPem(X509* certificate, EVP_PKEY* own_key,
                                                              EVP_PKEY* signing_key) {
  if (X509_sign(certificate, signing_key, EVP_sha256()) == 0) return OpenSslError("sign a certificate");
  RLHF_ASSIGN_OR_RETURN(std::string cert_pem,
                        ToPem([certificate](BIO* bio) { return PEM_write_bio_X509(bio, certificate); }));
  RLHF_ASSIGN_OR_RETURN(std::string key_pem, ToPem([own_key](BIO* bio) {
                          return PEM_write_bio_PKCS8PrivateKey(bio, own_key, nullptr, nullptr, 0, nullptr, nullptr);
                        }));
  return std::make_pair(std::move(cert_pem), std::move(key_pem));
}

// Names go into OpenSSL's extension syntax and into a URI: nothing that means something there may be in them.
absl::Status CheckName(absl::string_view what, const std::string& name) {
  for (const char c : name) {
    const bool plain =
        absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == ':';
    if (!plain) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, " \"", name, "\": expected letters, digits, '-', '_', '.' and ':' only"));
    }
  }
  return name.empty() ? absl::InvalidArgumentError(absl::StrCat(what, " is empty")) : absl::OkStatus();
}

bool IsIpAddress(const std::string& host) {
  ASN1_OCTET_STRING* parsed = a2i_IPADDRESS(host.c_str());
  ASN1_OCTET_STRING_free(parsed);
  ERR_clear_error();
  return parsed != nullptr;
}

}  // namespace

absl::StatusOr<CertificateAuthority> MakeCertificateAuthority(const std::string& domain, int days) {
  RLHF_RETURN_IF_ERROR(CheckName("domain", domain));
  KeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpenSslError("make a key");
  RLHF_ASSIGN_OR_RETURN(const X509Ptr certificate, NewCertificate(absl::StrCat("rlhf CA ", domain), key.get(), days));
  X509* const raw = certificate.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(raw)) != 1) return OpenSslError("name the issuer");
  RLHF_RETURN_IF_ERROR(AddExtension(raw, raw, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, raw, NID_key_usage, "critical,keyCertSign,cRLSign"));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, raw, NID_subject_key_identifier, "hash"));
  RLHF_ASSIGN_OR_RETURN(auto pem, SignedPem(raw, key.get(), key.get()));
  return CertificateAuthority{std::move(pem.first), std::move(pem.second)};
}

absl::StatusOr<IssuedCertificate> IssueCertificate(const CertificateAuthority& ca, const std::string& domain,
                                                   const std::string& role, const std::string& instance,
                                                   const std::vector<std::string>& hosts, int days) {
  RLHF_RETURN_IF_ERROR(CheckName("domain", domain));
  RLHF_RETURN_IF_ERROR(CheckName("role", role));
  RLHF_RETURN_IF_ERROR(CheckName("instance", instance));
  BioPtr cert_bio(BIO_new_mem_buf(ca.cert_pem.data(), static_cast<int>(ca.cert_pem.size())));
  BioPtr key_bio(BIO_new_mem_buf(ca.key_pem.data(), static_cast<int>(ca.key_pem.size())));
  X509Ptr ca_certificate(PEM_read_bio_X509(cert_bio.get(), nullptr, nullptr, nullptr));
  KeyPtr ca_key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, nullptr, nullptr));
  if (ca_certificate == nullptr || ca_key == nullptr) return OpenSslError("read the certificate authority");

  KeyPtr key(EVP_EC_gen("P-256"));
  if (key == nullptr) return OpenSslError("make a key");
  RLHF_ASSIGN_OR_RETURN(const X509Ptr certificate, NewCertificate(absl::StrCat(role, "/", instance), key.get(), days));
  X509* const raw = certificate.get();
  if (X509_set_issuer_name(raw, X509_get_subject_name(ca_certificate.get())) != 1)
    return OpenSslError("name the issuer");

  std::string names =
      absl::StrCat("URI:spiffe://", domain, "/role/", role, "/instance/", instance, ",DNS:", FleetServerName(role),
                   ",DNS:", FleetServerName(""), ",DNS:localhost,IP:127.0.0.1");
  for (const std::string& host : hosts) {
    RLHF_RETURN_IF_ERROR(CheckName("host", host));
    if (host == "localhost" || host == "127.0.0.1") continue;
    absl::StrAppend(&names, IsIpAddress(host) ? ",IP:" : ",DNS:", host);
  }
  X509* const issuer = ca_certificate.get();
  RLHF_RETURN_IF_ERROR(AddExtension(raw, issuer, NID_subject_alt_name, names));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, issuer, NID_basic_constraints, "critical,CA:FALSE"));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, issuer, NID_key_usage, "critical,digitalSignature"));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, issuer, NID_ext_key_usage, "serverAuth,clientAuth"));
  RLHF_RETURN_IF_ERROR(AddExtension(raw, issuer, NID_authority_key_identifier, "keyid"));
  RLHF_ASSIGN_OR_RETURN(auto pem, SignedPem(raw, key.get(), ca_key.get()));
  return IssuedCertificate{std::move(pem.first), std::move(pem.second)};
}

}  // namespace rlhf
