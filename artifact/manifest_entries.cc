#include "artifact/manifest_entries.h"

namespace rlhf::artifact {

google::protobuf::RepeatedPtrField<v1::FileEntry> EntriesOf(const Manifest& manifest) {
  google::protobuf::RepeatedPtrField<v1::FileEntry> entries;
  for (const FileEntry& file : manifest.files) {
    v1::FileEntry* entry = entries.Add();
    entry->set_path(file.path);
    entry->set_size(file.size);
    entry->set_sha256(file.sha256);
  }
  return entries;
}

}  // namespace rlhf::artifact
