// The inner loops with AVX-512 (F, BW, DQ, VL): 16 logits at a time. Only functions that are marked
// so use its instructions, none that other files share.
#include "core/logit_kernels.h"

#if defined(__x86_64__)

// GCC before 13 takes the registers that its own header leaves undefined for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>

#define PERTOKEN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace pertoken {
namespace {

template <FloatFormat Format>
PERTOKEN_AVX512 inline __m512 load(const std::byte* at) {
  if constexpr (Format == FloatFormat::kFloat32) {
    return _mm512_loadu_ps(at);
  } else {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    if constexpr (Format == FloatFormat::kBFloat16) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    } else {
      return _mm512_cvtph_ps(narrow);
    }
  }
}

template <FloatFormat Format>
PERTOKEN_AVX512 TwoLargest widen(const std::byte* logits, size_t count, float* widened) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  const __m512 greatest = _mm512_set1_ps(std::numeric_limits<float>::max());
  __m512 first = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 second = first;
  __mmask16 wrong = 0;
  for (size_t i = 0; i < count; i += kLogitLanes) {
    const __m512 x = load<Format>(logits + i * kBytes);
    _mm512_store_ps(widened + i, x);
    second = _mm512_max_ps(second, _mm512_min_ps(first, x));
    first = _mm512_max_ps(first, x);
    wrong = static_cast<__mmask16>(wrong | _mm512_cmp_ps_mask(x, greatest, _CMP_NLE_UQ));
  }
  TwoLargest found;
  found.first = _mm512_reduce_max_ps(first);
  found.has_wrong = wrong != 0;
  // The lane of the largest gives its second, the other lanes their first.
  const __mmask16 has_first = _mm512_cmp_ps_mask(first, _mm512_set1_ps(found.first), _CMP_EQ_OQ);
  const auto one = static_cast<__mmask16>(has_first & (0U - has_first));
  found.second = _mm512_reduce_max_ps(_mm512_mask_mov_ps(first, one, second));
  return found;
}

PERTOKEN_AVX512 inline __m512 exp_of(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low), r);
  __m512 p = _mm512_set1_ps(kExpOf[0]);
  for (size_t i = 1; i < std::size(kExpOf); ++i) {
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(kExpOf[i]));
  }
  const __m512 one = _mm512_set1_ps(1.0F);
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, one));
  return _mm512_scalef_ps(p, n);  // to 0 where it is too small
}

PERTOKEN_AVX512 ExpSums add(const float* widened, size_t count, float max) noexcept {
  const __m512 lowest = _mm512_set1_ps(-1000.0F);  // finite, for 0 * y
  const __m512 maxima = _mm512_set1_ps(max);
  __m512 exps = _mm512_setzero_ps();
  __m512 weighted = _mm512_setzero_ps();
  for (size_t i = 0; i < count; i += kLogitLanes) {
    const __m512 x = _mm512_load_ps(widened + i);
    const __m512 y = _mm512_max_ps(_mm512_sub_ps(x, maxima), lowest);
    const __m512 e = exp_of(y);
    exps = _mm512_add_ps(exps, e);
    weighted = _mm512_fmadd_ps(y, e, weighted);
  }
  return {_mm512_reduce_add_ps(exps), _mm512_reduce_add_ps(weighted)};
}

}  // namespace

const LogitKernels kAvx512LogitKernels = {
    widen<FloatFormat::kFloat32>,
    widen<FloatFormat::kFloat16>,
    widen<FloatFormat::kBFloat16>,
    add,
};

}  // namespace pertoken

#endif
