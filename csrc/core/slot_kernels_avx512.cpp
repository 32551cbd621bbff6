// The inner loops with AVX-512 (F, BW, DQ, VL): 16 values at a time. Only functions that are marked
// so use its instructions, none that other files share.
#include "core/slot_kernels.h"

#if defined(__x86_64__)

// GCC before 13 takes the registers that its own header leaves undefined for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "core/float_bits.h"

#define PERTOKEN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace pertoken {
namespace {

// The classes of VFPCLASSPS.
constexpr int kQuietNan = 0x01, kPosInf = 0x08, kNegInf = 0x10, kSubnormal = 0x20,
              kSignallingNan = 0x80;
constexpr int kNan = kQuietNan | kSignallingNan;
constexpr int kNotInTables = kNan | kPosInf | kNegInf | kSubnormal;

template <FloatFormat Format>
PERTOKEN_AVX512 inline __m512i load_as_float32(const std::byte* at) {
  if constexpr (Format == FloatFormat::kFloat32) {
    return _mm512_loadu_si512(at);
  } else {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    if constexpr (Format == FloatFormat::kBFloat16) {
      return _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
    } else {
      return _mm512_castps_si512(_mm512_cvtph_ps(narrow));
    }
  }
}

// As of slot_of_normal().
PERTOKEN_AVX512 inline __m512i slots_of_normal(__m512i bits, __m512i carries) {
  const __m512i start = _mm512_srli_epi32(bits, kCarryShift);
  const __m512i carry = _mm512_permutexvar_epi32(start, carries);  // reads 4 bits of start
  return _mm512_srli_epi32(_mm512_add_epi32(bits, carry), kSlotShift);
}

// Replaces the slots of values that have no normal ones.
PERTOKEN_AVX512 inline __m512i with_special_slots(__m512i slots, __m512i bits, __m512i carries) {
  const __m512 values = _mm512_castsi512_ps(bits);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i mantissa = _mm512_castps_si512(_mm512_cvtepi32_ps(magnitude));
  const __mmask16 is_subnormal = _mm512_fpclass_ps_mask(values, kSubnormal);
  const __mmask16 is_negative = _mm512_movepi32_mask(bits);
  __m512i subnormal = _mm512_add_epi32(slots_of_normal(mantissa, carries),
                                       _mm512_set1_epi32(kSubnormalSlots - kLowestMantissaSlot));
  subnormal = _mm512_mask_add_epi32(subnormal, is_negative, subnormal,
                                    _mm512_set1_epi32(kSubnormalSlotsOfSign));
  slots = _mm512_mask_mov_epi32(slots, is_subnormal, subnormal);
  slots = _mm512_mask_set1_epi32(slots, _mm512_fpclass_ps_mask(values, kNan), kNanSlot);
  slots = _mm512_mask_set1_epi32(slots, _mm512_fpclass_ps_mask(values, kPosInf), kPosInfSlot);
  return _mm512_mask_set1_epi32(slots, _mm512_fpclass_ps_mask(values, kNegInf), kNegInfSlot);
}

template <FloatFormat Format>
PERTOKEN_AVX512 void slots_and_moments(const std::byte* values, size_t count, uint16_t* slots,
                                       LaneMoments& moments) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  const __m512i carries = _mm512_loadu_si512(kSlotCarries.of);
  __m512d sum_low = _mm512_load_pd(moments.sum.data());
  __m512d sum_high = _mm512_load_pd(moments.sum.data() + 8);
  __m512d sum_sq_low = _mm512_load_pd(moments.sum_sq.data());
  __m512d sum_sq_high = _mm512_load_pd(moments.sum_sq.data() + 8);
  __m512 min = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  __m512 max = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  size_t done = 0;
  for (; done + kLanes <= count; done += kLanes) {
    const __m512i bits = load_as_float32<Format>(values + done * kBytes);
    __m512 value = _mm512_castsi512_ps(bits);
    __m512i slot = slots_of_normal(bits, carries);
    if (_mm512_fpclass_ps_mask(value, kNotInTables) == 0) [[likely]] {
      min = _mm512_min_ps(min, value);
      max = _mm512_max_ps(max, value);
    } else {
      slot = with_special_slots(slot, bits, carries);
      const auto is_finite =
          static_cast<__mmask16>(~_mm512_fpclass_ps_mask(value, kNan | kPosInf | kNegInf) & 0xffff);
      min = _mm512_mask_min_ps(min, is_finite, min, value);
      max = _mm512_mask_max_ps(max, is_finite, max, value);
      value = _mm512_maskz_mov_ps(is_finite, value);
    }
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
    sum_low = _mm512_add_pd(sum_low, low);
    sum_high = _mm512_add_pd(sum_high, high);
    sum_sq_low = _mm512_fmadd_pd(low, low, sum_sq_low);
    sum_sq_high = _mm512_fmadd_pd(high, high, sum_sq_high);
    _mm256_store_si256(reinterpret_cast<__m256i*>(slots + done), _mm512_cvtepi32_epi16(slot));
  }
  _mm512_store_pd(moments.sum.data(), sum_low);
  _mm512_store_pd(moments.sum.data() + 8, sum_high);
  _mm512_store_pd(moments.sum_sq.data(), sum_sq_low);
  _mm512_store_pd(moments.sum_sq.data() + 8, sum_sq_high);
  const double least = _mm512_reduce_min_ps(min);
  const double greatest = _mm512_reduce_max_ps(max);
  if (least < moments.min) moments.min = least;
  if (greatest > moments.max) moments.max = greatest;
  if (done != count) {
    add_rest<Format>(values + done * kBytes, count - done, slots + done, moments);
  }
}

}  // namespace

const SlotKernels kAvx512SlotKernels = {
    slots_and_moments<FloatFormat::kFloat32>,
    slots_and_moments<FloatFormat::kFloat16>,
    slots_and_moments<FloatFormat::kBFloat16>,
};

}  // namespace pertoken

#endif
