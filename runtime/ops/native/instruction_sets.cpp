// Chooses the instruction set.

#include <cstdlib>
#include <cstring>
#include <vector>

#include "contacts.h"

namespace esm2 {

extern const Kernel kernel_baseline;
extern const ContactsKernel contacts_baseline;
#if defined(__x86_64__)
extern const Kernel kernel_avx2, kernel_avx512;
extern const ContactsKernel contacts_avx2, contacts_avx512;
#endif

namespace {

// Widest first.
std::vector<const Kernel*> supported_kernels() {
  std::vector<const Kernel*> kernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
    kernels.push_back(&kernel_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    kernels.push_back(&kernel_avx2);
#endif
  kernels.push_back(&kernel_baseline);
  return kernels;
}

const Kernel& choose_kernel() {
  const auto kernels = supported_kernels();
  const char* wanted = std::getenv("ESM2_OPS_INSTRUCTIONS");
  for (const Kernel* kernel : kernels)
    if (wanted && !std::strcmp(kernel->name, wanted)) return *kernel;
  return *kernels.front();
}

}  // namespace

const Kernel& kernel() {
  static const Kernel& chosen = choose_kernel();
  return chosen;
}

const ContactsKernel& contacts_kernel() {
#if defined(__x86_64__)
  for (const ContactsKernel* one : {&contacts_avx2, &contacts_avx512})
    if (!std::strcmp(one->name, kernel().name)) return *one;
#endif
  return contacts_baseline;
}

}  // namespace esm2
