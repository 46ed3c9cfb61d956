// Regular expressions of a specification, as those who match by them compile them (PCRE2, UTF-8). Pure functions.
#pragma once

#include <string>

namespace rlhf::coordinator {

// What is wrong with a pattern that needs so many groups; empty when nothing.
std::string PatternProblem(const std::string& pattern, int groups = 0);

}  // namespace rlhf::coordinator
