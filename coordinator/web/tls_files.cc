#include "coordinator/web/tls_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status_util.h"

namespace rlhf::coordinator {
namespace {

constexpr absl::Duration kReadAgainAfter = absl::Seconds(10);

std::shared_ptr<BIO> BioOf(const std::string& pem) {
  return std::shared_ptr<BIO>(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
}

}  // namespace

absl::StatusOr<ReloadingCertificate::Pair> ReloadingCertificate::Read() const {
  RLHF_ASSIGN_OR_RETURN(const std::string cert_pem, ReadFile(cert_file_));
  RLHF_ASSIGN_OR_RETURN(const std::string key_pem, ReadFile(key_file_));
  Pair pair;
  const std::shared_ptr<BIO> certs = BioOf(cert_pem);
  while (X509* certificate = PEM_read_bio_X509(certs.get(), nullptr, nullptr, nullptr)) {
    pair.chain.emplace_back(certificate, X509_free);
  }
  pair.key = std::shared_ptr<EVP_PKEY>(PEM_read_bio_PrivateKey(BioOf(key_pem).get(), nullptr, nullptr, nullptr),
                                       EVP_PKEY_free);
  const bool fits = !pair.chain.empty() && pair.key != nullptr &&
                    X509_check_private_key(pair.chain.front().get(), pair.key.get()) == 1;
  ERR_clear_error();
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat("web listener: expected a PEM certificate and its key in ", cert_file_, " and ", key_file_));
  }
  return pair;
}

absl::Status ReloadingCertificate::Load() {
  RLHF_ASSIGN_OR_RETURN(Pair pair, Read());
  absl::MutexLock lock(&mu_);
  pair_ = std::move(pair);
  read_at_ = clock_->Now();
  return absl::OkStatus();
}

void ReloadingCertificate::Attach(SSL_CTX* context) {
  SSL_CTX_set_cert_cb(context, &ReloadingCertificate::OnConnection, this);
}

int ReloadingCertificate::OnConnection(SSL* ssl, void* raw) {
  auto* const self = static_cast<ReloadingCertificate*>(raw);
  Pair pair;
  bool look = false;
  {
    absl::MutexLock lock(&self->mu_);
    look = self->clock_->Now() - self->read_at_ > kReadAgainAfter;
    if (look) self->read_at_ = self->clock_->Now();
    pair = self->pair_;
  }
  if (look) {
    absl::StatusOr<Pair> newer = self->Read();
    if (newer.ok()) {
      pair = *newer;
      absl::MutexLock lock(&self->mu_);
      self->pair_ = *std::move(newer);
    } else {
      // Half written, perhaps: the old pair serves on, and the metric of its expiry shows when that matters.
      spdlog::warn("the old certificate is kept: {}", std::string(newer.status().message()));
    }
  }
  // Both take references of their own.
  if (SSL_use_certificate(ssl, pair.chain.front().get()) != 1) return 0;
  for (size_t i = 1; i < pair.chain.size(); ++i) SSL_add1_chain_cert(ssl, pair.chain[i].get());
  return SSL_use_PrivateKey(ssl, pair.key.get());
}

}  // namespace rlhf::coordinator
