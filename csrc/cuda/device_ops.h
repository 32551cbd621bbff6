// The few operations for which a GPU has instructions of its own, with the same result on a
// processor. Everything else that kernels compute is common code. Pure; any thread.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/float_bits.h"

// For loops over arrays that should stay in registers, and for those that need not be quick.
#if defined(__CUDA_ARCH__)
#define PERTOKEN_UNROLL _Pragma("unroll")
#define PERTOKEN_NO_UNROLL _Pragma("unroll 1")
#else
#define PERTOKEN_UNROLL
#define PERTOKEN_NO_UNROLL
#endif

namespace pertoken::cuda {

PERTOKEN_HOST_DEVICE inline float float_of(uint32_t bits) noexcept {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

PERTOKEN_HOST_DEVICE inline uint32_t bits_of(float value) noexcept {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}

PERTOKEN_HOST_DEVICE inline uint64_t bits_of(double value) noexcept {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  return __builtin_bit_cast(uint64_t, value);
#endif
}

// The float32 that equals a float16; NaN stays NaN, its other bits may differ.
PERTOKEN_HOST_DEVICE inline uint32_t bits_of_half(uint32_t half) noexcept {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(static_cast<uint16_t>(half)));
  return __float_as_uint(value);
#else
  return widened_bits<FloatFormat::kFloat16>(half);
#endif
}

PERTOKEN_HOST_DEVICE inline uint32_t min_of_signed_halves(uint32_t a, uint32_t b) noexcept {
#if defined(__CUDA_ARCH__)
  return __vmins2(a, b);
#else
  // With the sign bits flipped, the unsigned order is the signed one.
  const uint32_t x = a ^ 0x80008000U;
  const uint32_t y = b ^ 0x80008000U;
  const uint32_t high = (x >> 16 < y >> 16 ? x : y) & 0xffff0000U;
  const uint32_t low = (x & 0xffffU) < (y & 0xffffU) ? x & 0xffffU : y & 0xffffU;
  return (high | low) ^ 0x80008000U;
#endif
}

PERTOKEN_HOST_DEVICE inline uint32_t max_of_unsigned_halves(uint32_t a, uint32_t b) noexcept {
#if defined(__CUDA_ARCH__)
  return __vmaxu2(a, b);
#else
  const uint32_t high = (a >> 16 > b >> 16 ? a : b) & 0xffff0000U;
  const uint32_t low = (a & 0xffffU) > (b & 0xffffU) ? a & 0xffffU : b & 0xffffU;
  return high | low;
#endif
}

PERTOKEN_HOST_DEVICE inline float smaller(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return b < a ? b : a;
#endif
}

PERTOKEN_HOST_DEVICE inline float larger(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return b > a ? b : a;
#endif
}

// Of two pairs of 16-bit numbers that are not NaN, in one instruction.
template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline uint32_t smaller_halves(uint32_t a, uint32_t b) noexcept {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  if constexpr (Format == FloatFormat::kBFloat16) {
    asm("min.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
#else
  const auto of = [](uint32_t half) { return float_of(widened_bits<Format>(half & 0xffffU)); };
  const uint32_t high = (of(b >> 16) < of(a >> 16) ? b : a) & 0xffff0000U;
  const uint32_t low = (of(b) < of(a) ? b : a) & 0xffffU;
  return high | low;
#endif
}

template <FloatFormat Format>
PERTOKEN_HOST_DEVICE inline uint32_t larger_halves(uint32_t a, uint32_t b) noexcept {
#if defined(__CUDA_ARCH__)
  uint32_t result;
  if constexpr (Format == FloatFormat::kBFloat16) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
#else
  const auto of = [](uint32_t half) { return float_of(widened_bits<Format>(half & 0xffffU)); };
  const uint32_t high = (of(b >> 16) > of(a >> 16) ? b : a) & 0xffff0000U;
  const uint32_t low = (of(b) > of(a) ? b : a) & 0xffffU;
  return high | low;
#endif
}

// 16 bytes at an aligned address that are read once: past the first cache.
struct Vector {
  uint32_t words[4];
};

PERTOKEN_HOST_DEVICE inline Vector load_vector(uint64_t address) noexcept {
  Vector vector;
#if defined(__CUDA_ARCH__)
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(vector.words[0]), "=r"(vector.words[1]), "=r"(vector.words[2]),
                 "=r"(vector.words[3])
               : "l"(address));
#else
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  std::memcpy(&vector, reinterpret_cast<const void*>(address), sizeof(vector));
#endif
  return vector;
}

template <typename Bits>
PERTOKEN_HOST_DEVICE inline Bits load_value(uint64_t address) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  return *reinterpret_cast<const Bits*>(address);
}

// To an aligned address.
PERTOKEN_HOST_DEVICE inline void store_vector(uint64_t address, const Vector& vector) noexcept {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(address) =
      make_uint4(vector.words[0], vector.words[1], vector.words[2], vector.words[3]);
#else
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  std::memcpy(reinterpret_cast<void*>(address), &vector, sizeof(vector));
#endif
}

template <typename Bits>
PERTOKEN_HOST_DEVICE inline void store_value(uint64_t address, Bits bits) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  *reinterpret_cast<Bits*>(address) = bits;
}

}  // namespace pertoken::cuda
