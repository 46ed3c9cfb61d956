// A job's step metrics as TensorBoard event files: DIR/JOB/events.out.tfevents.SECONDS.INSTANCE.PID.N, one for each
// time a process takes the job up. Format: TFRecord framing (length, masked CRC-32C of it, data, masked CRC-32C of
// that) around messages `tensorflow.Event`.
//
// A job that goes on from a checkpoint trains steps again. Readers then show them once: each file, and each return to
// an earlier step, begins with a session start at the next step, before which TensorBoard drops what it had of that
// step and later ones.
//
// Not thread-safe. Every event is written at once and whole. A file that cannot be written is given up with a line in
// the log; training goes on.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rlhf::learner {

// CRC-32C (Castagnoli), as in RFC 3720, and the form in which TFRecord stores it.
uint32_t Crc32c(absl::string_view bytes);
uint32_t MaskedCrc32c(absl::string_view bytes);

class EventFile {
 public:
  // An empty folder's name: nothing is ever written.
  EventFile(std::string dir, std::string instance);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  // The job's steps from `next_step` on follow. Opens a file unless the job's is open.
  void Begin(const std::string& job_id, int64_t next_step, absl::Time at);
  // After Begin, of the job given there: a scalar for each metric, under its own name. Values as float32.
  void Step(int64_t step, absl::Time at, const std::map<std::string, double>& metrics);
  // The job has ended: its file is closed.
  void End();
  const std::string& path() const { return path_; }  // of the open file; empty: none

 private:
  bool Open(const std::string& job_id, absl::Time at);
  void Append(const std::string& event);

  const std::string dir_, instance_;
  std::string job_id_, path_;
  int64_t newest_ = 0;  // step written
  int files_ = 0;
  int fd_ = -1;
};

}  // namespace rlhf::learner
