// The inner loops with AVX2, FMA and F16C: 8 logits at a time, in two sets of lanes that do not
// wait for each other. Only functions that are marked so use these instructions, none that other
// files share.
#include "core/logit_kernels.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#define PERTOKEN_AVX2 __attribute__((target("avx2,fma,f16c")))

namespace pertoken {
namespace {

template <FloatFormat Format>
PERTOKEN_AVX2 inline __m256 load(const std::byte* at) {
  if constexpr (Format == FloatFormat::kFloat32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
  } else {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    if constexpr (Format == FloatFormat::kBFloat16) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
    } else {
      return _mm256_cvtph_ps(narrow);
    }
  }
}

template <FloatFormat Format>
PERTOKEN_AVX2 TwoLargest widen(const std::byte* logits, size_t count, float* widened) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  constexpr size_t kHalf = kLogitLanes / 2;
  const __m256 greatest = _mm256_set1_ps(std::numeric_limits<float>::max());
  const __m256 lowest = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  __m256 first[2] = {lowest, lowest};
  __m256 second[2] = {lowest, lowest};
  __m256 wrong = _mm256_setzero_ps();
  for (size_t i = 0; i < count; i += kLogitLanes) {
    for (size_t half = 0; half < 2; ++half) {
      const __m256 x = load<Format>(logits + (i + half * kHalf) * kBytes);
      _mm256_store_ps(widened + i + half * kHalf, x);
      second[half] = _mm256_max_ps(second[half], _mm256_min_ps(first[half], x));
      first[half] = _mm256_max_ps(first[half], x);
      wrong = _mm256_or_ps(wrong, _mm256_cmp_ps(x, greatest, _CMP_NLE_UQ));
    }
  }
  alignas(32) float of_lanes[2 * kLogitLanes];
  for (size_t half = 0; half < 2; ++half) {
    _mm256_store_ps(of_lanes + half * kHalf, first[half]);
    _mm256_store_ps(of_lanes + kLogitLanes + half * kHalf, second[half]);
  }
  TwoLargest found;
  found.has_wrong = _mm256_movemask_ps(wrong) != 0;
  for (const float x : of_lanes) {
    const float less = x < found.first ? x : found.first;
    found.second = less > found.second ? less : found.second;
    found.first = x > found.first ? x : found.first;
  }
  return found;
}

PERTOKEN_AVX2 inline __m256 exp_of(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(kLowestFloat32Exponent);
  const __m256 clamped = _mm256_max_ps(x, lowest);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(kLog2E)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), clamped);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low), r);
  __m256 p = _mm256_set1_ps(kExpOf[0]);
  for (size_t i = 1; i < std::size(kExpOf); ++i) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(kExpOf[i]));
  }
  const __m256 one = _mm256_set1_ps(1.0F);
  p = _mm256_fmadd_ps(_mm256_mul_ps(p, r), r, _mm256_add_ps(r, one));
  const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256i scale = _mm256_add_epi32(power, _mm256_castps_si256(one));
  const __m256 result = _mm256_mul_ps(p, _mm256_castsi256_ps(scale));
  return _mm256_and_ps(result, _mm256_cmp_ps(x, lowest, _CMP_GE_OQ));
}

PERTOKEN_AVX2 inline float sum_of(__m256 low, __m256 high) {
  alignas(32) float of_lanes[kLogitLanes / 2];
  _mm256_store_ps(of_lanes, _mm256_add_ps(low, high));
  float sum = 0;
  for (const float x : of_lanes) sum += x;
  return sum;
}

PERTOKEN_AVX2 ExpSums add(const float* widened, size_t count, float max) noexcept {
  constexpr size_t kHalf = kLogitLanes / 2;
  const __m256 lowest = _mm256_set1_ps(-1000.0F);  // finite, for 0 * y
  const __m256 maxima = _mm256_set1_ps(max);
  __m256 exps[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  __m256 weighted[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for (size_t i = 0; i < count; i += kLogitLanes) {
    for (size_t half = 0; half < 2; ++half) {
      const __m256 x = _mm256_load_ps(widened + i + half * kHalf);
      const __m256 y = _mm256_max_ps(_mm256_sub_ps(x, maxima), lowest);
      const __m256 e = exp_of(y);
      exps[half] = _mm256_add_ps(exps[half], e);
      weighted[half] = _mm256_fmadd_ps(y, e, weighted[half]);
    }
  }
  return {sum_of(exps[0], exps[1]), sum_of(weighted[0], weighted[1])};
}

}  // namespace

const LogitKernels kAvx2LogitKernels = {
    widen<FloatFormat::kFloat32>,
    widen<FloatFormat::kFloat16>,
    widen<FloatFormat::kBFloat16>,
    add,
};

}  // namespace pertoken

#endif
