#include "artifact/tokenizer/metaspace_settings.h"

#include "absl/strings/str_cat.h"

namespace rlhf::artifact {

absl::StatusOr<MetaspaceSettings> ReadMetaspace(JsonObject* json) {
  MetaspaceSettings out;
  json->Ignore({"str_rep"});  // the replacement once more
  out.replacement = json->Character("replacement", "\xE2\x96\x81");
  out.split = json->Flag("split", true);
  const bool add_prefix_space = json->Flag("add_prefix_space", true);
  const std::string scheme = json->Text("prepend_scheme", add_prefix_space ? "always" : "never");
  if (scheme == "always") {
    out.scheme = PrependScheme::kAlways;
  } else if (scheme == "first") {
    out.scheme = PrependScheme::kFirst;
  } else if (scheme == "never") {
    out.scheme = PrependScheme::kNever;
  } else {
    return json->Bad("prepend_scheme",
                     absl::StrCat("found \"", scheme.substr(0, 40), "\"; supported: always, first, never"));
  }
  if (!add_prefix_space && out.scheme != PrependScheme::kNever)
    return json->Bad("add_prefix_space", "false contradicts prepend_scheme; expected \"never\" there");
  return out;
}

}  // namespace rlhf::artifact
