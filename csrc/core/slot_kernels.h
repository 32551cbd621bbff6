// The inner loops behind tensor_stats.h, one file for each set of instructions: the slots and the
// moments of up to a block of values. No state; any thread.
//
// Value i is added in lane i % 16, in doubles. A square of a float32 is exact in a double, so that
// a fused multiplication changes nothing, and all sets of instructions give the same sums to the
// bit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/float_bits.h"

namespace pertoken {

inline constexpr size_t kLanes = 16;

// Of finite values.
struct LaneMoments {
  alignas(64) std::array<double, kLanes> sum{};
  alignas(64) std::array<double, kLanes> sum_sq{};
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
};

// Writes the slot of each of `count` values, as of slot_of(), and adds to the moments. Neither
// pointer to values nor their number need be aligned; `slots` is, to 64 bytes.
using SlotKernel = void (*)(const std::byte* values, size_t count, uint16_t* slots,
                            LaneMoments& moments) noexcept;

struct SlotKernels {
  SlotKernel float32;
  SlotKernel float16;
  SlotKernel bfloat16;
};

extern const SlotKernels kPortableSlotKernels;
#if defined(__x86_64__)
extern const SlotKernels kAvx2SlotKernels;
extern const SlotKernels kAvx512SlotKernels;
#endif

// What is left of a block after its last 16 values, by the portable kernel.
template <FloatFormat Format>
void add_rest(const std::byte* values, size_t count, uint16_t* slots,
              LaneMoments& moments) noexcept {
  if constexpr (Format == FloatFormat::kFloat32) {
    kPortableSlotKernels.float32(values, count, slots, moments);
  } else if constexpr (Format == FloatFormat::kFloat16) {
    kPortableSlotKernels.float16(values, count, slots, moments);
  } else {
    kPortableSlotKernels.bfloat16(values, count, slots, moments);
  }
}

}  // namespace pertoken
