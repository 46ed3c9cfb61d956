// Linked into every program of the asan preset: what the sanitizer is told.
extern "C" {
const char* __asan_default_options() {
  // Forked children of tests are killed; LibTorch's start is slow enough without a check of each free block. Its memmem
  // looks at all of the rest of a text at each call: megabytes at each of a million matches.
  return "detect_leaks=1:detect_stack_use_after_return=0:check_initialization_order=0:allocator_may_return_null=1:"
         "intercept_memmem=0";
}
// Libraries that are not ours keep things until the process ends.
const char* __lsan_default_suppressions() {
  return "leak:libtorch_cpu.so\n"
         "leak:libgrpc.so\n"
         "leak:libprotobuf.so\n"
         "leak:libcares.so\n"
         "leak:libssl.so\n"
         "leak:libcrypto.so\n";
}
}
