// The inner loops behind logit_stats.h, one file for each set of instructions. No state; any
// thread. Counts are multiples of kLogitLanes.
#pragma once

#include <cstddef>
#include <limits>

#include "core/float_bits.h"

namespace pertoken {

inline constexpr size_t kLogitLanes = 16;
// So many at a time: what is kept between the two loops stays in the nearest cache, and a lane adds
// no more than 64 numbers in float32.
inline constexpr size_t kLogitChunk = 1024;

// Below this, e^x is less than the smallest normal float32.
inline constexpr float kLowestFloat32Exponent = -87.0F;

struct TwoLargest {
  float first = -std::numeric_limits<float>::infinity();
  float second = -std::numeric_limits<float>::infinity();
  bool has_wrong = false;  // a NaN or plus infinity, and the others are nothing to go by
};

struct ExpSums {
  float exps = 0;      // the sum of e^(x - max)
  float weighted = 0;  // and of (x - max) e^(x - max)
};

struct LogitKernels {
  // Widens the logits to float32 on the way; `widened` is aligned to 64 bytes.
  using Widen = TwoLargest (*)(const std::byte* logits, size_t count, float* widened) noexcept;
  Widen float32;
  Widen float16;
  Widen bfloat16;
  // `max` is at least the largest, and no infinity.
  ExpSums (*add)(const float* widened, size_t count, float max) noexcept;
};

extern const LogitKernels kPortableLogitKernels;
#if defined(__x86_64__)
extern const LogitKernels kAvx2LogitKernels;
extern const LogitKernels kAvx512LogitKernels;
#endif

// e^r = 1 + r + r^2 p(r) for |r| <= ln(2) / 2, within 2 units in the last place of a float32; and
// ln(2) in two parts, of which the first is exact in products with small integers (Cephes, expf).
inline constexpr float kExpOf[] = {1.9875691500e-4F, 1.3981999507e-3F, 8.3334519073e-3F,
                                   4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F};
inline constexpr float kLog2E = 1.44269504088896341F;
inline constexpr float kLn2High = 0.693359375F;
inline constexpr float kLn2Low = -2.12194440e-4F;

}  // namespace pertoken
