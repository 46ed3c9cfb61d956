// The certificate of an OpenSSL server, read again when its files change. Thread-safe.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"

namespace rlhf::coordinator {

class ReloadingCertificate {
 public:
  ReloadingCertificate(std::string cert_file, std::string key_file, const Clock* clock)
      : cert_file_(std::move(cert_file)), key_file_(std::move(key_file)), clock_(clock) {}

  // InvalidArgument when the files are no certificate with its key.
  absl::Status Load();
  // Makes every new connection of the context present the newest pair; looks at the files every 10 s at most, and keeps
  // the old pair while the new one is not readable or does not match. Outlives the context.
  void Attach(SSL_CTX* context);

 private:
  struct Pair {
    std::vector<std::shared_ptr<X509>> chain;  // the leaf first
    std::shared_ptr<EVP_PKEY> key;
  };
  absl::StatusOr<Pair> Read() const;
  static int OnConnection(SSL* ssl, void* self);

  const std::string cert_file_, key_file_;
  const Clock* const clock_;
  absl::Mutex mu_;
  Pair pair_ ABSL_GUARDED_BY(mu_);
  absl::Duration read_at_ ABSL_GUARDED_BY(mu_) = absl::ZeroDuration();
};

}  // namespace rlhf::coordinator
