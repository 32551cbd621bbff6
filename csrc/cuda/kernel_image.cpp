#include "cuda/kernel_image.h"

#if defined(PERTOKEN_HAS_KERNELS)
// Defined by the assembler file that CMake writes.
extern "C" const std::byte pertoken_kernels_begin[];
extern "C" const std::byte pertoken_kernels_end[];
#endif

namespace pertoken::cuda {

std::span<const std::byte> kernel_image() noexcept {
#if defined(PERTOKEN_HAS_KERNELS)
  return {pertoken_kernels_begin, pertoken_kernels_end};
#else
  return {};
#endif
}

}  // namespace pertoken::cuda
