// The kernels of csrc/cuda/kernels, as nvcc built them, for the driver to load; part of the library
// itself. Any thread.
#pragma once

#include <cstddef>
#include <span>

namespace pertoken::cuda {

// Empty in a build without nvcc.
std::span<const std::byte> kernel_image() noexcept;

}  // namespace pertoken::cuda
