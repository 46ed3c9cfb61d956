// Ed25519 signatures (RFC 8032) with keys in PEM files. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rlhf {

class Signer {
 public:
  // Reads the private key; where there is no file yet, makes a key there (readable by its owner only) and writes the
  // public key beside it, as PATH.pub. InvalidArgument for a file that is no Ed25519 key.
  static absl::StatusOr<std::unique_ptr<Signer>> Open(const std::string& path);
  ~Signer();
  std::string Sign(absl::string_view bytes) const;  // base64
  const std::string& public_key_pem() const { return public_key_pem_; }
  const std::string& key_sha256() const { return key_sha256_; }  // of the public key's DER

 private:
  struct Key;
  explicit Signer(std::unique_ptr<Key> key);
  std::unique_ptr<Key> key_;
  std::string public_key_pem_, key_sha256_;
};

// DataLoss when the signature is not this key's of these bytes; InvalidArgument for a bad key or bad base64.
absl::Status VerifySignature(const std::string& public_key_pem, absl::string_view bytes, const std::string& signature);
// SHA-256 of a public key's DER, hex.
absl::StatusOr<std::string> PublicKeySha256(const std::string& public_key_pem);

}  // namespace rlhf
