// Which build a program is of.
#pragma once

#include <string>

namespace rlhf {

// The project's version and the build id that the linker made of the program's bytes, "0.1.0+c00117124a34014b": two
// builds of one version differ in it, two of the same bytes do not. Of another program of the same build it is another.
// Thread-safe.
const std::string& BuildVersion();

}  // namespace rlhf
