// Floating-point formats by their bits, and the slot that counts a value in a table: the arithmetic
// that the kernels on processors and on GPUs share. Integers only, so neither the rounding mode nor
// a flush of subnormals to zero changes it. Pure; any thread.
//
// Every format here but float64 widens to float32 exactly. A float32 has a slot at scale 3: the
// bucket, with the sign and with what is no bucket. A slot takes no comparison: half an octave's
// eighth, the first 4 bits of the mantissa, holds one boundary at most, and adding the right number
// to the bits carries into the next bucket exactly above it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/exp_boundaries.h"

#if defined(__CUDACC__)
#define PERTOKEN_HOST_DEVICE __host__ __device__
#else
#define PERTOKEN_HOST_DEVICE
#endif

namespace pertoken {

// The letters after e and m: fn has no infinities, fnuz no negative zero either.
enum class FloatFormat : uint8_t {
  kFloat64,
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3FN,
  kFloat8E4M3FNUZ,
  kFloat8E5M2,
  kFloat8E5M2FNUZ,
};

inline constexpr int kFloatFormats = 8;

PERTOKEN_HOST_DEVICE constexpr int bytes_of(FloatFormat format) noexcept {
  switch (format) {
    case FloatFormat::kFloat64:
      return 8;
    case FloatFormat::kFloat32:
      return 4;
    case FloatFormat::kFloat16:
    case FloatFormat::kBFloat16:
      return 2;
    default:
      return 1;
  }
}

inline constexpr uint32_t kFloat32Sign = 0x80000000U;
inline constexpr uint32_t kFloat32Infinity = 0x7f800000U;
inline constexpr uint32_t kFloat32Nan = 0x7fc00000U;

// Mantissa bits and exponent bias of a narrow format, laid out as IEEE 754 does.
template <FloatFormat Format>
struct NarrowLayout;
template <>
struct NarrowLayout<FloatFormat::kFloat16> {
  static constexpr int kBits = 16, kMantissa = 10, kBias = 15;
};
template <>
struct NarrowLayout<FloatFormat::kBFloat16> {
  static constexpr int kBits = 16, kMantissa = 7, kBias = 127;
};
template <>
struct NarrowLayout<FloatFormat::kFloat8E4M3FN> {
  static constexpr int kBits = 8, kMantissa = 3, kBias = 7;
};
template <>
struct NarrowLayout<FloatFormat::kFloat8E4M3FNUZ> {
  static constexpr int kBits = 8, kMantissa = 3, kBias = 8;
};
template <>
struct NarrowLayout<FloatFormat::kFloat8E5M2> {
  static constexpr int kBits = 8, kMantissa = 2, kBias = 15;
};
template <>
struct NarrowLayout<FloatFormat::kFloat8E5M2FNUZ> {
  static constexpr int kBits = 8, kMantissa = 2, kBias = 16;
};

// The bits of the float32 that equals a value of a narrow format; NaN stays NaN.
template <FloatFormat Format>
PERTOKEN_HOST_DEVICE constexpr uint32_t widened_bits(uint32_t bits) noexcept {
  using Layout = NarrowLayout<Format>;
  if constexpr (Format == FloatFormat::kBFloat16) return bits << 16;
  constexpr uint32_t sign_bit = 1U << (Layout::kBits - 1);
  constexpr uint32_t magnitude_mask = sign_bit - 1;
  constexpr uint32_t mantissa_mask = (1U << Layout::kMantissa) - 1;
  constexpr uint32_t top_exponent = magnitude_mask - mantissa_mask;
  constexpr int shift = 23 - Layout::kMantissa;
  const uint32_t magnitude = bits & magnitude_mask;
  const uint32_t sign = (bits & sign_bit) != 0 ? kFloat32Sign : 0;
  if constexpr (Format == FloatFormat::kFloat8E4M3FN) {
    if (magnitude == magnitude_mask) return kFloat32Nan;
  } else if constexpr (Format == FloatFormat::kFloat8E4M3FNUZ ||
                       Format == FloatFormat::kFloat8E5M2FNUZ) {
    if (bits == sign_bit) return kFloat32Nan;
  } else {
    if (magnitude > top_exponent) return kFloat32Nan;
    if (magnitude == top_exponent) return sign | kFloat32Infinity;
  }
  if (magnitude > mantissa_mask) {
    return sign | ((magnitude << shift) + (static_cast<uint32_t>(127 - Layout::kBias) << 23));
  }
  if (magnitude == 0) return sign;
  // Subnormal: made normal, which float32 has the exponents for.
  uint32_t mantissa = magnitude << shift;
  uint32_t exponent = static_cast<uint32_t>(127 - Layout::kBias + 1);
  while (mantissa < (1U << 23)) {
    mantissa <<= 1;
    --exponent;
  }
  return sign | ((exponent << 23) + (mantissa - (1U << 23)));
}

inline constexpr int kSlotScale = 3;
inline constexpr int kSlotsPerOctave = 1 << kSlotScale;
inline constexpr int kSlotShift = 23 - kSlotScale;
inline constexpr int kCarries = 2 * kSlotsPerOctave;  // one for each start of a mantissa
inline constexpr int kCarryShift = kSlotShift - 1;

// The slots. Those of normal values are the upper 12 bits of a float32, corrected: sign, exponent,
// eighth of an octave. Exponents 0 and 255, which no normal value has, leave room for the rest.
inline constexpr int kNanSlot = 0;
inline constexpr int kPosInfSlot = 1;
inline constexpr int kNegInfSlot = 2;
inline constexpr int kPosZeroSlot = 4095;
inline constexpr int kNegZeroSlot = 2047;
inline constexpr int kNegativeSlots = 2048;  // where negative normal values begin
inline constexpr int kSubnormalSlots = 4096;
inline constexpr int kSubnormalSlotsOfSign = 192;
inline constexpr int kSlots = kSubnormalSlots + 2 * kSubnormalSlotsOfSign;
// Of a normal value: its slot, less its sign, less its bucket.
inline constexpr int kSlotOfBucketZero = 127 * kSlotsPerOctave;
// Of a subnormal value, which is counted by its mantissa as a float32: that one's lowest slot, and
// its bucket less that of the value.
inline constexpr int kLowestMantissaSlot = kSlotOfBucketZero - 1;
inline constexpr int kSubnormalBuckets = 149 * kSlotsPerOctave;

struct SlotCarries {
  uint32_t of[kCarries];
};

// What is added to the bits of a float32 for the first 4 bits of its mantissa, modulo 2^32.
constexpr SlotCarries make_slot_carries(const OctaveTables& octave) noexcept {
  SlotCarries carries{};
  for (uint32_t start = 0; start < kCarries; ++start) {
    const uint32_t lowest = start << kCarryShift;
    const uint32_t highest = lowest + ((1U << kCarryShift) - 1);
    // The first boundary that is not below all of these mantissas, rounded down, and its number:
    // mantissas above it are in that bucket of the octave, the others in the one before.
    uint32_t number = 0;
    uint32_t boundary = 0;
    while (true) {
      constexpr int kFiner = kBucketsPerOctave / kSlotsPerOctave;
      boundary = number < kSlotsPerOctave
                     ? static_cast<uint32_t>(octave.boundary[size_t{number} * kFiner] >> 29)
                     : highest;
      if (boundary >= lowest) break;
      ++number;
    }
    carries.of[start] = (number << kSlotShift) - (boundary < highest ? boundary + 1 : highest + 1);
  }
  return carries;
}

extern const SlotCarries kSlotCarries;

// Of a normal value or a zero, with its carry: that of the low 4 bits of bits >> kCarryShift.
PERTOKEN_HOST_DEVICE constexpr uint32_t slot_with_carry(uint32_t bits, uint32_t carry) noexcept {
  return (bits + carry) >> kSlotShift;
}

PERTOKEN_HOST_DEVICE constexpr uint32_t slot_of_normal(uint32_t bits,
                                                       const SlotCarries& carries) noexcept {
  return slot_with_carry(bits, carries.of[(bits >> kCarryShift) & (kCarries - 1)]);
}

// The bits of a float32 that holds an integer from 1 to 2^23 - 1, without a conversion.
PERTOKEN_HOST_DEVICE constexpr uint32_t float32_bits_of_mantissa(uint32_t mantissa) noexcept {
  uint32_t exponent = 127 + 23;
  while (mantissa < (1U << 23)) {
    mantissa <<= 1;
    --exponent;
  }
  return (exponent << 23) + (mantissa - (1U << 23));
}

// The slot of a float32; `carries` may lie wherever the device reads it fastest.
PERTOKEN_HOST_DEVICE constexpr uint32_t slot_of(uint32_t bits,
                                                const SlotCarries& carries) noexcept {
  const uint32_t magnitude = bits & ~kFloat32Sign;
  const bool is_negative = magnitude != bits;
  if (magnitude >= kFloat32Infinity) {
    if (magnitude > kFloat32Infinity) return kNanSlot;
    return is_negative ? kNegInfSlot : kPosInfSlot;
  }
  if (magnitude != 0 && magnitude < (1U << 23)) {
    const uint32_t slot = slot_of_normal(float32_bits_of_mantissa(magnitude), carries);
    return kSubnormalSlots + (slot - kLowestMantissaSlot) +
           (is_negative ? kSubnormalSlotsOfSign : 0);
  }
  return slot_of_normal(bits, carries);
}

}  // namespace pertoken
