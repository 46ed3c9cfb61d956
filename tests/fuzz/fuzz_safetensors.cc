// Any bytes as a safetensors file; every tensor that is accepted is read to its last byte.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "artifact/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const int file = memfd_create("fuzz", 0);
  if (file < 0 || write(file, data, size) != static_cast<ssize_t>(size)) std::abort();
  {
    const auto opened = rlhf::artifact::SafetensorsFile::Open("/proc/self/fd/" + std::to_string(file));
    if (opened.ok()) {
      volatile unsigned sum = 0;
      for (const auto& [name, info] : (*opened)->tensors()) {
        std::vector<uint8_t> bytes(info.end - info.begin);
        if (!(*opened)->Read(info, 0, absl::MakeSpan(bytes)).ok()) std::abort();  // the file is whole
        for (const uint8_t byte : bytes) sum = sum + byte;
      }
    }
  }
  close(file);
  return 0;
}
