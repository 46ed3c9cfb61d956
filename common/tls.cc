#include "common/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/durable_file.h"
#include "common/openssl_ptr.h"
#include "common/status_util.h"

namespace rlhf {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;

constexpr unsigned kReloadSeconds = 10;

absl::StatusOr<X509Ptr> ReadCertificate(const std::string& path, absl::string_view what) {
  RLHF_ASSIGN_OR_RETURN(const std::string pem, ReadFile(path));
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  if (certificate == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(what, " ", path, ": expected a PEM certificate, found none"));
  }
  return certificate;
}

absl::Status CheckKeyPair(const TlsFiles& files) {
  RLHF_ASSIGN_OR_RETURN(const X509Ptr certificate, ReadCertificate(files.cert_file, "certificate"));
  RLHF_ASSIGN_OR_RETURN(const std::string pem, ReadFile(files.key_file));
  BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  KeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  const bool matches = key != nullptr && X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (key == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("key ", files.key_file, ": expected a PEM private key, found none"));
  }
  if (!matches) {
    return absl::InvalidArgumentError(
        absl::StrCat("key ", files.key_file, " does not belong to certificate ", files.cert_file));
  }
  return absl::OkStatus();
}

// gRPC only logs what is wrong with the files and then refuses every handshake; better to say it at start-up.
absl::Status CheckFiles(const TlsFiles& files, bool need_ca, bool need_identity) {
  if (need_ca && files.ca_file.empty()) {
    return absl::InvalidArgumentError("no CA file is given: set it, or ask for plaintext explicitly");
  }
  if (need_identity && (files.cert_file.empty() || files.key_file.empty())) {
    return absl::InvalidArgumentError(
        "no certificate and key files are given: set both, or ask for plaintext explicitly");
  }
  if (files.cert_file.empty() != files.key_file.empty()) {
    return absl::InvalidArgumentError("a certificate needs its key and a key its certificate: give both files or none");
  }
  if (need_ca) {
    if (auto ca = ReadCertificate(files.ca_file, "CA"); !ca.ok()) return ca.status();
  }
  return files.cert_file.empty() ? absl::OkStatus() : CheckKeyPair(files);
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(const TlsFiles& files,
                                                                               bool require_client_certificate) {
  if (files.insecure) return grpc::InsecureServerCredentials();
  RLHF_RETURN_IF_ERROR(CheckFiles(files, require_client_certificate, /*need_identity=*/true));
  const std::string ca_file = require_client_certificate ? files.ca_file : "";
  auto provider =
      std::make_shared<FileWatcherCertificateProvider>(files.key_file, files.cert_file, ca_file, kReloadSeconds);
  grpc::experimental::TlsServerCredentialsOptions options(std::move(provider));
  options.watch_identity_key_cert_pairs();
  if (require_client_certificate) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  } else {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(const TlsFiles& files) {
  if (files.insecure) return grpc::InsecureChannelCredentials();
  const bool has_identity = !files.cert_file.empty();
  RLHF_RETURN_IF_ERROR(CheckFiles(files, /*need_ca=*/true, /*need_identity=*/false));
  auto provider = has_identity ? std::make_shared<FileWatcherCertificateProvider>(files.key_file, files.cert_file,
                                                                                  files.ca_file, kReloadSeconds)
                               : std::make_shared<FileWatcherCertificateProvider>(files.ca_file, kReloadSeconds);
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(std::move(provider));
  options.watch_root_certs();
  if (has_identity) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

absl::StatusOr<FleetIdentity> ParseSpiffeId(const std::string& uri) {
  absl::string_view rest = uri;
  const std::vector<std::string> parts =
      absl::ConsumePrefix(&rest, "spiffe://") ? absl::StrSplit(rest, '/') : std::vector<std::string>{};
  const bool valid = parts.size() == 5 && parts[1] == "role" && parts[3] == "instance" && !parts[0].empty() &&
                     !parts[2].empty() && !parts[4].empty();
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("identity \"", uri, "\": expected spiffe://DOMAIN/role/ROLE/instance/ID"));
  }
  return FleetIdentity{parts[0], parts[2], parts[4]};
}

}  // namespace rlhf
