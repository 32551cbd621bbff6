// The value of a floating-point number of any format, as a double, exactly. Pure; any thread.
#pragma once

#include <bit>
#include <cstddef>
#include <cstring>

#include "core/float_bits.h"

namespace pertoken {

template <typename Bits>
Bits load_bits(const std::byte* at) noexcept {
  Bits bits;
  std::memcpy(&bits, at, sizeof(bits));
  return bits;
}

// Through a double's exponent, which has room for every float32: no conversion, which a processor
// that was told to flush subnormals to zero would get wrong.
inline double double_of(uint32_t bits) noexcept {
  const uint64_t sign = static_cast<uint64_t>(bits & kFloat32Sign) << 32;
  const uint32_t magnitude = bits & ~kFloat32Sign;
  if (magnitude >= kFloat32Infinity) {
    const bool is_nan = magnitude > kFloat32Infinity;
    return std::bit_cast<double>(sign | (is_nan ? 0x7ff8000000000000U : 0x7ff0000000000000U));
  }
  if (magnitude == 0) return std::bit_cast<double>(sign);
  const bool is_subnormal = magnitude < (1U << 23);
  const uint64_t normal = is_subnormal ? float32_bits_of_mantissa(magnitude) : magnitude;
  const uint64_t rebias = 1023 - 127 - (is_subnormal ? 149 : 0);
  return std::bit_cast<double>(sign | ((normal << 29) + (rebias << kMantissaBits)));
}

// The bits of the float32 that equals the value of a format other than float64.
template <FloatFormat Format>
uint32_t float32_bits_at(const std::byte* at) noexcept {
  if constexpr (Format == FloatFormat::kFloat32) {
    return load_bits<uint32_t>(at);
  } else if constexpr (bytes_of(Format) == 2) {
    return widened_bits<Format>(load_bits<uint16_t>(at));
  } else {
    return widened_bits<Format>(load_bits<uint8_t>(at));
  }
}

template <FloatFormat Format>
double value_at(const std::byte* at) noexcept {
  if constexpr (Format == FloatFormat::kFloat64) {
    return load_bits<double>(at);
  } else {
    return double_of(float32_bits_at<Format>(at));
  }
}

inline double value_at(const std::byte* at, FloatFormat format) noexcept {
  switch (format) {
    case FloatFormat::kFloat64:
      return value_at<FloatFormat::kFloat64>(at);
    case FloatFormat::kFloat32:
      return value_at<FloatFormat::kFloat32>(at);
    case FloatFormat::kFloat16:
      return value_at<FloatFormat::kFloat16>(at);
    case FloatFormat::kBFloat16:
      return value_at<FloatFormat::kBFloat16>(at);
    case FloatFormat::kFloat8E4M3FN:
      return value_at<FloatFormat::kFloat8E4M3FN>(at);
    case FloatFormat::kFloat8E4M3FNUZ:
      return value_at<FloatFormat::kFloat8E4M3FNUZ>(at);
    case FloatFormat::kFloat8E5M2:
      return value_at<FloatFormat::kFloat8E5M2>(at);
    case FloatFormat::kFloat8E5M2FNUZ:
      return value_at<FloatFormat::kFloat8E5M2FNUZ>(at);
  }
  return 0;
}

}  // namespace pertoken
