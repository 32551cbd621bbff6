// How a tensor in a GPU's memory is divided among the warps of the statistics kernel. Filled by
// plan_stats() on the host, read by the kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_bits.h"
#include "cuda/device_ops.h"

namespace pertoken::cuda {

inline constexpr int kWarpLanes = 32;
inline constexpr uint32_t kAllLanes = 0xffffffffU;
inline constexpr int kVectorBytes = 16;  // of a load
inline constexpr int kVectorsAhead = 4;  // loads of a lane that are under way at once
inline constexpr uint64_t kWarpBytes = uint64_t{kWarpLanes} * kVectorBytes;
inline constexpr int kOuterDims = 4;
inline constexpr int kStatsThreads = 512;
inline constexpr int kMaxStatsBlocks = 512;

// Runs of values with one stride, those of a row after those of the one before, and units of a run,
// one a warp at a time. The units of dense runs
// are vectors, counted from the last aligned address at or before the run, so that all loads but
// those at its ends are whole; the units of others are values.
struct StatsLayout {
  uint64_t first;  // address of the value whose indices are all 0
  uint32_t runs;   // of a row
  uint32_t run_values;
  int64_t stride_bytes;  // between values of a run; at least their size
  uint32_t units_a_run;
  uint32_t unit_size;  // vectors of a dense run, else values; a multiple of kWarpLanes
  int32_t outer_dims;
  uint32_t outer_shape[kOuterDims];  // the outermost first
  int64_t outer_strides_bytes[kOuterDims];
};

PERTOKEN_HOST_DEVICE inline uint64_t address_of_run(const StatsLayout& layout,
                                                    uint32_t run) noexcept {
  uint64_t address = layout.first;
  PERTOKEN_NO_UNROLL
  for (int dim = layout.outer_dims - 1; dim >= 0; --dim) {
    const uint32_t rest = run / layout.outer_shape[dim];
    const uint32_t index = run - rest * layout.outer_shape[dim];
    address += uint64_t{index} * static_cast<uint64_t>(layout.outer_strides_bytes[dim]);
    run = rest;
  }
  return address;
}

}  // namespace pertoken::cuda
