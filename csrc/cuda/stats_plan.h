// How a tensor is handed to the statistics kernel. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/tensor_view.h"
#include "cuda/stats_layout.h"

namespace pertoken::cuda {

struct StatsPlan {
  StatsLayout layout{};
  uint32_t blocks = 0;  // of each row
  uint32_t rows = 1;    // that are counted apart
  // How often each value that is read stands in the tensor, as of TensorBlocks.
  uint64_t repeats = 1;
};

// The name of the kernel that counts a format; nullptr where there is none.
const char* stats_kernel_of(FloatFormat format) noexcept;

// Of a tensor in the memory of a GPU with so many multiprocessors. Nothing, with a reason for
// people, where the kernel cannot read it. Throws as TensorBlocks does. A tensor without values has
// 0 blocks: there is nothing to launch. `by_row`: each index of the first dimension is counted
// apart.
std::optional<StatsPlan> plan_stats(const TensorView& view, int multiprocessors,
                                    std::string& reason, bool by_row = false);

}  // namespace pertoken::cuda
