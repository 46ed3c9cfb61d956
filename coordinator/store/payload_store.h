// Append-only segment files for payloads (samples, scores).
//
// Append assigns a place at once; the bytes are written and fsynced by Sync, which the state store calls before it
// commits the rows that name them. Framing: u32 size, u32 XXH32 of the bytes, bytes. A segment goes as a whole, once no
// row names anything in it (PayloadRetention). Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rlhf/v1/state.pb.h"

namespace rlhf::coordinator {

class PayloadStore {
 public:
  virtual ~PayloadStore() = default;
  virtual v1::PayloadRef Append(std::string bytes) = 0;
  virtual absl::Status Sync() = 0;  // everything appended so far is durable
  virtual absl::StatusOr<std::string> Read(
      const v1::PayloadRef& ref) = 0;  // also what is not yet synced; DataLoss on a bad checksum
  // What comes next goes into another segment.
  virtual void Roll() = 0;
  // The segments that nothing will be appended to by this process any more, by number; all of it is written.
  virtual absl::StatusOr<std::vector<uint32_t>> Sealed() = 0;
  // Deletes sealed segments that are there; returns the bytes that came free.
  virtual absl::StatusOr<uint64_t> Remove(const std::vector<uint32_t>& segments) = 0;
};
inline constexpr uint64_t kSegmentBytes = 64 << 20;
// A segment is only written by the process that made it. `claim` makes the first one at once: where another process may
// still write to the folder (one that led before), it then cannot take this one's next place for its own.
absl::StatusOr<std::unique_ptr<PayloadStore>> OpenPayloadStore(const std::string& dir,
                                                               uint64_t segment_bytes = kSegmentBytes,
                                                               bool claim = false);

// Makes the store sync these payloads before each transaction.
class StateStore;
std::unique_ptr<StateStore> WithPayloads(std::unique_ptr<StateStore> store, PayloadStore* payloads);

}  // namespace rlhf::coordinator
