// The arithmetic of the statistics kernel on the values of one thread: into slots and moments.
// Shared by the kernel, which adds to tables in shared memory, and by the tests, which run it on a
// processor against the reference of core/tensor_stats.h. Where the two differ, in a handful of
// instructions, the function is one of device_ops.h. Pure; any thread.
//
// Squares and sums are doubles: a square of a float32 is exact in one, so the sums are those of the
// processors' kernels up to the order of the additions, whatever the size of the values, and there
// is no range to check. A double costs a conversion and two instructions a value, hardly more than
// compensated sums in float32 would.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/float_bits.h"
#include "cuda/device_ops.h"
#include "cuda/stats_layout.h"

namespace pertoken::cuda {

// Of finite values.
struct StatsMoments {
  double sum;
  double sum_sq;
  float min;
  float max;
};

PERTOKEN_HOST_DEVICE inline StatsMoments no_moments() noexcept {
  return {0, 0, float_of(kFloat32Infinity), float_of(kFloat32Sign | kFloat32Infinity)};
}

PERTOKEN_HOST_DEVICE inline void combine(StatsMoments& into, const StatsMoments& from) noexcept {
  into.sum += from.sum;
  into.sum_sq += from.sum_sq;
  into.min = smaller(into.min, from.min);
  into.max = larger(into.max, from.max);
}

PERTOKEN_HOST_DEVICE inline void add_to_sums(StatsMoments& moments, float value) noexcept {
  const double wide = value;
  moments.sum += wide;
  moments.sum_sq += wide * wide;
}

PERTOKEN_HOST_DEVICE inline void add_finite(StatsMoments& moments, float value,
                                            uint32_t times) noexcept {
  const double wide = value;
  moments.sum += wide * times;
  moments.sum_sq += wide * wide * times;
  moments.min = smaller(moments.min, value);
  moments.max = larger(moments.max, value);
}

PERTOKEN_HOST_DEVICE constexpr bool is_finite(uint32_t bits) noexcept {
  return (bits & kFloat32Infinity) != kFloat32Infinity;
}

template <FloatFormat Format>
inline constexpr int kValuesAVector = kVectorBytes / bytes_of(Format);

// The float32 that equals value i of a vector; i is known when compiling.
template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline uint32_t bits_of_value(const Vector& vector, int i) noexcept {
  if constexpr (Format == FloatFormat::kFloat32) {
    return vector.words[i];
  } else {
    const uint32_t word = vector.words[i / 2];
    if constexpr (Format == FloatFormat::kBFloat16) {
      return i % 2 == 0 ? word << 16 : word & 0xffff0000U;
    } else {
      return bits_of_half(i % 2 == 0 ? word & 0xffffU : word >> 16);
    }
  }
}

// What a warp's carry() takes for value i: the bits above kCarryShift, 4 of which count.
template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline uint32_t top_of_value(const Vector& vector, int i) noexcept {
  if constexpr (Format == FloatFormat::kBFloat16) {
    return vector.words[i / 2] >> (i % 2 == 0 ? kCarryShift - 16 : kCarryShift);
  } else {
    return bits_of_value<Format>(vector, i) >> kCarryShift;
  }
}

// Whether one of the values needs a look: it is neither zero nor normal as a float32.
template <FloatFormat Format, int Vectors>
PERTOKEN_HOST_DEVICE inline bool has_special(const Vector (&vectors)[Vectors]) noexcept {
  constexpr uint32_t kSmallestNormal = 1U << 23;
  if constexpr (Format == FloatFormat::kFloat32) {
    bool special = false;
    for (const Vector& vector : vectors) {
      for (const uint32_t bits : vector.words) {
        const uint32_t magnitude = bits & ~kFloat32Sign;
        special |= magnitude >= kFloat32Infinity;
        special |= magnitude - 1 < kSmallestNormal - 1;  // of zero, the largest number
      }
    }
    return special;
  } else if constexpr (Format == FloatFormat::kBFloat16) {
    // Two at a time. Of zero 0x7fff, then upwards, so that a signed comparison puts zero last and a
    // subnormal first, and an unsigned one puts what is not finite last.
    constexpr uint32_t kFirst = 0x7fff;
    constexpr uint32_t kNormal = kFirst + (kSmallestNormal >> 16);
    constexpr uint32_t kInfinite = kFirst + (kFloat32Infinity >> 16);
    uint32_t lowest = 0x7fff7fffU;
    uint32_t highest = 0;
    for (const Vector& vector : vectors) {
      for (const uint32_t word : vector.words) {
        const uint32_t shifted = (word & 0x7fff7fffU) + 0x7fff7fffU;
        lowest = min_of_signed_halves(lowest, shifted);
        highest = max_of_unsigned_halves(highest, shifted);
      }
    }
    lowest = min_of_signed_halves(lowest, lowest >> 16 | lowest << 16);
    highest = max_of_unsigned_halves(highest, highest >> 16 | highest << 16);
    return (lowest & 0xffffU) - 0x8000U < kNormal - 0x8000U || (highest & 0xffffU) >= kInfinite;
  } else {
    // The subnormals of float16 are normal float32s.
    uint32_t highest = 0;
    for (const Vector& vector : vectors) {
      for (const uint32_t word : vector.words) {
        highest = max_of_unsigned_halves(highest, word & 0x7fff7fffU);
      }
    }
    return (highest & 0xffffU) >= 0x7c00U || highest >> 16 >= 0x7c00U;
  }
}

// What the functions below ask of the warp that runs them: `count(slot)` adds 1 to a counter,
// `carries()` are the carries as a table, `carry(top)` that of the low 4 bits of `top`; that one
// and `any(bool)` are called by all lanes together.

// Any value, by any lane.
template <typename Warp>
PERTOKEN_HOST_DEVICE inline void take_bits(uint32_t bits, Warp& warp,
                                           StatsMoments& moments) noexcept {
  warp.count(slot_of(bits, warp.carries()));
  if (is_finite(bits)) add_finite(moments, float_of(bits), 1);
}

// Minimum and maximum of a vector without special values.
template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline void add_extremes(const Vector& vector,
                                              StatsMoments& moments) noexcept {
  const uint32_t* const words = vector.words;
  if constexpr (Format == FloatFormat::kFloat32) {
    for (int i = 0; i < 4; ++i) {
      moments.min = smaller(moments.min, float_of(words[i]));
      moments.max = larger(moments.max, float_of(words[i]));
    }
  } else {
    // Of pairs as long as there are several, in half the instructions.
    const uint32_t lowest = smaller_halves<Format>(smaller_halves<Format>(words[0], words[1]),
                                                   smaller_halves<Format>(words[2], words[3]));
    const uint32_t highest = larger_halves<Format>(larger_halves<Format>(words[0], words[1]),
                                                   larger_halves<Format>(words[2], words[3]));
    const Vector both = {{lowest, highest, 0, 0}};
    for (int i = 0; i < 2; ++i) {
      moments.min = smaller(moments.min, float_of(bits_of_value<Format>(both, i)));
      moments.max = larger(moments.max, float_of(bits_of_value<Format>(both, 2 + i)));
    }
  }
}

// A vector without special values, by all lanes together.
template <FloatFormat Format, typename Warp>
PERTOKEN_HOST_DEVICE inline void take_plain_vector(const Vector& vector, Warp& warp,
                                                   StatsMoments& moments) noexcept {
  constexpr int kValues = kValuesAVector<Format>;
  uint32_t slots[kValues];
  PERTOKEN_UNROLL
  for (int i = 0; i < kValues; ++i) {
    slots[i] = slot_with_carry(bits_of_value<Format>(vector, i),
                               warp.carry(top_of_value<Format>(vector, i)));
  }
  PERTOKEN_UNROLL
  for (int i = 0; i < kValues; ++i) warp.count(slots[i]);
  PERTOKEN_UNROLL
  for (int i = 0; i < kValues; ++i) {
    add_to_sums(moments, float_of(bits_of_value<Format>(vector, i)));
  }
  add_extremes<Format>(vector, moments);
}

}  // namespace pertoken::cuda
