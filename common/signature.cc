#include "common/signature.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status_util.h"

namespace rlhf {
namespace {

struct FreeKey {
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
struct FreeBio {
  void operator()(BIO* bio) const { BIO_free(bio); }
};
struct FreeContext {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
using KeyPtr = std::unique_ptr<EVP_PKEY, FreeKey>;
using BioPtr = std::unique_ptr<BIO, FreeBio>;

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<KeyPtr> Generate(const std::string& path) {
  KeyPtr key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"));
  const BioPtr bio(BIO_new(BIO_s_mem()));
  if (!key || PEM_write_bio_PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1)
    return absl::InternalError("OpenSSL could not make an Ed25519 key");
  const std::string pem = Text(bio.get());
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
  const bool written = write(fd, pem.data(), pem.size()) == static_cast<ssize_t>(pem.size()) && fsync(fd) == 0;
  close(fd);
  if (!written) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return key;
}

absl::StatusOr<KeyPtr> ReadPublic(const std::string& pem) {
  const BioPtr bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  KeyPtr key(PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr));
  if (!key || EVP_PKEY_get_id(key.get()) != EVP_PKEY_ED25519)
    return absl::InvalidArgumentError("expected a PEM file with an Ed25519 public key");
  return key;
}

std::string DerSha256(EVP_PKEY* key) {
  unsigned char* der = nullptr;
  const int size = i2d_PUBKEY(key, &der);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(der, static_cast<size_t>(size), digest);
  OPENSSL_free(der);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace

struct Signer::Key {
  std::shared_ptr<EVP_PKEY> pkey;
};

Signer::Signer(std::unique_ptr<Key> key) : key_(std::move(key)) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_PUBKEY(bio.get(), key_->pkey.get());
  public_key_pem_ = Text(bio.get());
  key_sha256_ = DerSha256(key_->pkey.get());
}
Signer::~Signer() = default;

absl::StatusOr<std::unique_ptr<Signer>> Signer::Open(const std::string& path) {
  auto key = std::make_unique<Key>();
  const absl::StatusOr<std::string> pem = ReadFile(path);
  const bool fresh = absl::IsNotFound(pem.status());
  if (fresh) {
    RLHF_ASSIGN_OR_RETURN(key->pkey, Generate(path));
  } else {
    if (!pem.ok()) return pem.status();
    const BioPtr bio(BIO_new_mem_buf(pem->data(), static_cast<int>(pem->size())));
    key->pkey = KeyPtr(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
    if (!key->pkey || EVP_PKEY_get_id(key->pkey.get()) != EVP_PKEY_ED25519) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": expected a PEM file with an Ed25519 private key (`openssl genpkey -algorithm ed25519` makes one)"));
    }
  }
  auto signer = std::unique_ptr<Signer>(new Signer(std::move(key)));
  if (fresh) RLHF_RETURN_IF_ERROR(WriteFileDurably(path + ".pub", signer->public_key_pem()));
  return signer;
}

std::string Signer::Sign(absl::string_view bytes) const {
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  std::string signature(64, '\0');
  size_t size = signature.size();
  EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, key_->pkey.get());
  EVP_DigestSign(context.get(), reinterpret_cast<unsigned char*>(signature.data()), &size,
                 reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return absl::Base64Escape(signature.substr(0, size));
}

absl::Status VerifySignature(const std::string& public_key_pem, absl::string_view bytes, const std::string& signature) {
  RLHF_ASSIGN_OR_RETURN(const KeyPtr key, ReadPublic(public_key_pem));
  std::string raw;
  if (!absl::Base64Unescape(signature, &raw)) return absl::InvalidArgumentError("expected a signature in base64");
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key.get());
  const int good = EVP_DigestVerify(context.get(), reinterpret_cast<const unsigned char*>(raw.data()), raw.size(),
                                    reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
  return good == 1 ? absl::OkStatus() : absl::DataLossError("the signature is not this key's, or the content changed");
}

absl::StatusOr<std::string> PublicKeySha256(const std::string& public_key_pem) {
  RLHF_ASSIGN_OR_RETURN(const KeyPtr key, ReadPublic(public_key_pem));
  return DerSha256(key.get());
}

}  // namespace rlhf
