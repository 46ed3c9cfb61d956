#include "common/grpc_log.h"

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <set>
#include <utility>

#include <grpc/support/log.h>
#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/log.h"

namespace rlhf {
namespace {

// How the newest verification of a peer ended on this thread. gRPC's line about a failed handshake does not say why
// verification failed, but follows on the same thread.
struct Verdict {
  int error = X509_V_OK;
  bool of_client = false;
};
thread_local Verdict newest_verdict;

// OpenSSL calls this when it gives up the context of a verification, whose result stands by then.
void NoteVerdict(void* parent, void* /*pointer*/, CRYPTO_EX_DATA* data, int /*index*/, long /*argl*/, void* /*argp*/) {
  const auto* ssl = static_cast<const SSL*>(CRYPTO_get_ex_data(data, SSL_get_ex_data_X509_STORE_CTX_idx()));
  if (ssl == nullptr) return;  // a verification outside any handshake
  newest_verdict.error = X509_STORE_CTX_get_error(static_cast<const X509_STORE_CTX*>(parent));
  newest_verdict.of_client = SSL_is_server(ssl) == 1;
}

std::optional<HandshakeRefusal> RefusalOf(absl::string_view message) {
  const Verdict verdict = std::exchange(newest_verdict, Verdict());
  if (absl::StrContains(message, "peer did not return a certificate")) return HandshakeRefusal::kNoCertificate;
  if (!absl::StrContains(message, "certificate verify failed") || !verdict.of_client) return std::nullopt;
  switch (verdict.error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return HandshakeRefusal::kExpired;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_UNTRUSTED:
      return HandshakeRefusal::kUntrusted;
    default:
      return HandshakeRefusal::kOther;
  }
}

class Handshakes {
 public:
  void Add(const std::function<void(HandshakeRefusal)>* watcher) {
    absl::MutexLock lock(&mu_);
    watchers_.insert(watcher);
  }
  void Remove(const std::function<void(HandshakeRefusal)>* watcher) {
    absl::MutexLock lock(&mu_);
    watchers_.erase(watcher);
  }
  void Tell(HandshakeRefusal refusal) {
    absl::MutexLock lock(&mu_);
    for (const auto* watcher : watchers_) (*watcher)(refusal);
  }
  // Whether a line about a failure is to be written now; then how many were not, since the last one.
  std::optional<int64_t> TakeLine() {
    absl::MutexLock lock(&mu_);
    const absl::Time now = absl::Now();
    const absl::Duration since = now - written_;
    // Of the wall clock: one that was set back must not silence the log.
    if (since >= absl::ZeroDuration() && since < absl::Seconds(1)) {
      ++left_out_;
      return std::nullopt;
    }
    written_ = now;
    return std::exchange(left_out_, 0);
  }

 private:
  absl::Mutex mu_;
  std::set<const std::function<void(HandshakeRefusal)>*> watchers_ ABSL_GUARDED_BY(mu_);
  absl::Time written_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  int64_t left_out_ ABSL_GUARDED_BY(mu_) = 0;
};

// Never destroyed: gRPC's threads may log while the process ends.
Handshakes& TheHandshakes() {
  static Handshakes* const handshakes = new Handshakes;
  return *handshakes;
}

void Write(gpr_log_severity severity, const std::string& text) {
  switch (severity) {
    case GPR_LOG_SEVERITY_DEBUG:
      spdlog::debug("{}", text);
      break;
    case GPR_LOG_SEVERITY_INFO:
      spdlog::info("{}", text);
      break;
    case GPR_LOG_SEVERITY_ERROR:
      spdlog::error("{}", text);
      break;
  }
}

void OnLine(gpr_log_func_args* line) {
  const absl::string_view message = line->message;
  absl::string_view file = line->file;
  if (const size_t slash = file.rfind('/'); slash != absl::string_view::npos) file.remove_prefix(slash + 1);
  std::string text = absl::StrCat("gRPC: ", message, " (", file, ":", line->line, ")");
  if (!absl::StrContains(message, "Handshake failed with fatal error")) return Write(line->severity, text);

  const std::optional<HandshakeRefusal> refusal = RefusalOf(message);
  if (const std::optional<int64_t> left_out = TheHandshakes().TakeLine(); left_out.has_value()) {
    if (*left_out > 0) absl::StrAppend(&text, "; ", *left_out, " failed handshakes before it are not shown");
    Write(line->severity, text);
  }
  if (refusal.has_value()) TheHandshakes().Tell(*refusal);
}

}  // namespace

void InstallGrpcLog() {
  static const bool installed [[maybe_unused]] = [] {
    // Without its lines no refused handshake would be known.
    const char* wanted = std::getenv("GRPC_VERBOSITY");
    if (wanted != nullptr && absl::EqualsIgnoreCase(wanted, "none")) gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    if (X509_STORE_CTX_get_ex_new_index(0, nullptr, nullptr, nullptr, NoteVerdict) < 0)
      spdlog::error("OpenSSL takes no observer of verifications: refused certificates are not counted");
    // The logger is there before this line and so goes after it, when gRPC's threads write to stderr again.
    (void)spdlog::default_logger_raw();
    (void)std::atexit([] { gpr_set_log_function(nullptr); });
    gpr_set_log_function(OnLine);
    return true;
  }();
}

std::string HandshakeReason(HandshakeRefusal refusal) {
  switch (refusal) {
    case HandshakeRefusal::kNoCertificate:
      return "handshake_no_certificate";
    case HandshakeRefusal::kUntrusted:
      return "handshake_untrusted";
    case HandshakeRefusal::kExpired:
      return "handshake_expired";
    case HandshakeRefusal::kOther:
      break;
  }
  return "handshake_other";
}

HandshakeWatch::HandshakeWatch(std::function<void(HandshakeRefusal)> refused) : refused_(std::move(refused)) {
  TheHandshakes().Add(&refused_);
}
HandshakeWatch::~HandshakeWatch() {
  TheHandshakes().Remove(&refused_);
}

}  // namespace rlhf
