#include "common/build_version.h"

#include <elf.h>
#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/process.h"

namespace rlhf {
namespace {

size_t Aligned(size_t size) {
  return (size + 3) & ~size_t{3};
}

// Of one segment of notes; empty without one.
std::string BuildIdIn(absl::string_view notes) {
  while (notes.size() >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) note;
    std::memcpy(&note, notes.data(), sizeof(note));
    notes.remove_prefix(sizeof(note));
    const size_t name = Aligned(note.n_namesz), content = Aligned(note.n_descsz);
    if (name > notes.size() || content > notes.size() - name) return "";
    if (note.n_type == NT_GNU_BUILD_ID && notes.substr(0, note.n_namesz) == absl::string_view("GNU", 4))
      return absl::BytesToHexString(notes.substr(name, note.n_descsz));
    notes.remove_prefix(name + content);
  }
  return "";
}

// The first object that is told of is the program itself.
int OfProgram(dl_phdr_info* object, size_t, void* id) {
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const char* const begin = reinterpret_cast<const char*>(object->dlpi_addr + segment.p_vaddr);
    std::string found = BuildIdIn(absl::string_view(begin, segment.p_memsz));
    if (found.empty()) continue;
    *static_cast<std::string*>(id) = std::move(found);
    break;
  }
  return 1;
}

}  // namespace

const std::string& BuildVersion() {
  static const std::string* const version = [] {
    std::string id;
    dl_iterate_phdr(OfProgram, &id);
    return new std::string(id.empty() ? std::string(kBuildVersion) : absl::StrCat(kBuildVersion, "+", id));
  }();
  return *version;
}

}  // namespace rlhf
