// The inner loops with AVX2, FMA and F16C: two times 8 values at a time. Only functions that are
// marked so use these instructions, none that other files share.
#include "core/slot_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "core/float_bits.h"

#define PERTOKEN_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace pertoken {
namespace {

template <FloatFormat Format>
PERTOKEN_AVX2 inline __m256i load_as_float32(const std::byte* at) {
  if constexpr (Format == FloatFormat::kFloat32) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  } else {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    if constexpr (Format == FloatFormat::kBFloat16) {
      return _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
    } else {
      return _mm256_castps_si256(_mm256_cvtph_ps(narrow));
    }
  }
}

struct Carries {
  __m256 low;   // for mantissas that begin with a 0
  __m256 high;  // with a 1
};

// As of slot_of_normal().
PERTOKEN_AVX2 inline __m256i slots_of_normal(__m256i bits, const Carries& carries) {
  const __m256i start = _mm256_srli_epi32(bits, kCarryShift);
  const __m256 first_bit = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 9));
  const __m256 carry = _mm256_blendv_ps(_mm256_permutevar8x32_ps(carries.low, start),
                                        _mm256_permutevar8x32_ps(carries.high, start), first_bit);
  return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_castps_si256(carry)), kSlotShift);
}

PERTOKEN_AVX2 inline __m256i magnitude_of(__m256i bits) {
  return _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
}

// All ones for what has no slot among those of normal values and zeros. With 2^23 added, infinities
// and NaNs are negative, subnormals positive and less than 2^24, like zero.
PERTOKEN_AVX2 inline __m256i is_special(__m256i bits) {
  const __m256i magnitude = magnitude_of(bits);
  const __m256i raised = _mm256_add_epi32(magnitude, _mm256_set1_epi32(1 << 23));
  return _mm256_andnot_si256(_mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256()),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(1 << 24), raised));
}

PERTOKEN_AVX2 inline __m256i is_finite(__m256i bits) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(kFloat32Infinity)),
                            magnitude_of(bits));
}

// Replaces the slots of values that have no normal ones.
PERTOKEN_AVX2 inline __m256i with_special_slots(__m256i slots, __m256i bits,
                                                const Carries& carries) {
  const __m256i magnitude = magnitude_of(bits);
  const __m256i is_negative = _mm256_srai_epi32(bits, 31);
  const __m256i mantissa = _mm256_castps_si256(_mm256_cvtepi32_ps(magnitude));
  __m256i subnormal = _mm256_add_epi32(slots_of_normal(mantissa, carries),
                                       _mm256_set1_epi32(kSubnormalSlots - kLowestMantissaSlot));
  subnormal = _mm256_add_epi32(
      subnormal, _mm256_and_si256(is_negative, _mm256_set1_epi32(kSubnormalSlotsOfSign)));
  const __m256i infinity = _mm256_set1_epi32(static_cast<int>(kFloat32Infinity));
  const __m256i infinite = _mm256_blendv_epi8(_mm256_set1_epi32(kPosInfSlot),
                                              _mm256_set1_epi32(kNegInfSlot), is_negative);
  __m256i special =
      _mm256_blendv_epi8(subnormal, infinite, _mm256_cmpeq_epi32(magnitude, infinity));
  special = _mm256_blendv_epi8(special, _mm256_set1_epi32(kNanSlot),
                               _mm256_cmpgt_epi32(magnitude, infinity));
  return _mm256_blendv_epi8(slots, special, is_special(bits));
}

PERTOKEN_AVX2 inline __m256 either(__m256 otherwise, __m256i mask, __m256 value) {
  return _mm256_blendv_ps(otherwise, value, _mm256_castsi256_ps(mask));
}

PERTOKEN_AVX2 inline void add(__m256 values, __m256d* sum, __m256d* sum_sq) {
  const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(values));
  const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(values, 1));
  sum[0] = _mm256_add_pd(sum[0], low);
  sum[1] = _mm256_add_pd(sum[1], high);
  sum_sq[0] = _mm256_fmadd_pd(low, low, sum_sq[0]);
  sum_sq[1] = _mm256_fmadd_pd(high, high, sum_sq[1]);
}

template <FloatFormat Format>
PERTOKEN_AVX2 void slots_and_moments(const std::byte* values, size_t count, uint16_t* slots,
                                     LaneMoments& moments) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  const auto* const of = reinterpret_cast<const float*>(kSlotCarries.of);
  const Carries carries = {_mm256_loadu_ps(of), _mm256_loadu_ps(of + 8)};
  __m256d sum[4], sum_sq[4];
  for (size_t i = 0; i < 4; ++i) {
    sum[i] = _mm256_load_pd(moments.sum.data() + 4 * i);
    sum_sq[i] = _mm256_load_pd(moments.sum_sq.data() + 4 * i);
  }
  const __m256 lowest = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const __m256 highest = _mm256_set1_ps(std::numeric_limits<float>::infinity());
  __m256 min = highest;
  __m256 max = lowest;
  size_t done = 0;
  for (; done + kLanes <= count; done += kLanes) {
    const std::byte* const at = values + done * kBytes;
    const __m256i bits[2] = {load_as_float32<Format>(at), load_as_float32<Format>(at + 8 * kBytes)};
    __m256 value[2] = {_mm256_castsi256_ps(bits[0]), _mm256_castsi256_ps(bits[1])};
    __m256i slot[2] = {slots_of_normal(bits[0], carries), slots_of_normal(bits[1], carries)};
    const __m256i special = _mm256_or_si256(is_special(bits[0]), is_special(bits[1]));
    if (_mm256_testz_si256(special, special) != 0) [[likely]] {
      min = _mm256_min_ps(_mm256_min_ps(min, value[0]), value[1]);
      max = _mm256_max_ps(_mm256_max_ps(max, value[0]), value[1]);
    } else {
      for (int i = 0; i < 2; ++i) {
        slot[i] = with_special_slots(slot[i], bits[i], carries);
        const __m256i finite = is_finite(bits[i]);
        min = _mm256_min_ps(min, either(highest, finite, value[i]));
        max = _mm256_max_ps(max, either(lowest, finite, value[i]));
        value[i] = either(_mm256_setzero_ps(), finite, value[i]);
      }
    }
    add(value[0], sum, sum_sq);
    add(value[1], sum + 2, sum_sq + 2);
    // Packs the halves of both side by side, which are then put in order.
    const __m256i packed = _mm256_packus_epi32(slot[0], slot[1]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(slots + done),
                       _mm256_permute4x64_epi64(packed, 0xd8));
  }
  for (size_t i = 0; i < 4; ++i) {
    _mm256_store_pd(moments.sum.data() + 4 * i, sum[i]);
    _mm256_store_pd(moments.sum_sq.data() + 4 * i, sum_sq[i]);
  }
  alignas(32) float least[8], greatest[8];
  _mm256_store_ps(least, min);
  _mm256_store_ps(greatest, max);
  for (size_t i = 0; i < 8; ++i) {
    if (least[i] < moments.min) moments.min = least[i];
    if (greatest[i] > moments.max) moments.max = greatest[i];
  }
  if (done != count) {
    add_rest<Format>(values + done * kBytes, count - done, slots + done, moments);
  }
}

}  // namespace

const SlotKernels kAvx2SlotKernels = {
    slots_and_moments<FloatFormat::kFloat32>,
    slots_and_moments<FloatFormat::kFloat16>,
    slots_and_moments<FloatFormat::kBFloat16>,
};

}  // namespace pertoken

#endif
