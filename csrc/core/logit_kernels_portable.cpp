// The inner loops for every processor.
#include <algorithm>
#include <array>
#include <bit>

#include "core/float_value.h"
#include "core/logit_kernels.h"

namespace pertoken {
namespace {

// Loops over lanes that a compiler can turn into the vectors of the processor at hand.
template <FloatFormat Format>
TwoLargest widen(const std::byte* logits, size_t count, float* widened) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  std::array<float, kLogitLanes> first;
  std::array<float, kLogitLanes> second;
  std::array<uint32_t, kLogitLanes> wrong{};
  first.fill(-std::numeric_limits<float>::infinity());
  second = first;
  for (size_t i = 0; i < count; i += kLogitLanes) {
    for (size_t lane = 0; lane < kLogitLanes; ++lane) {
      const auto x = std::bit_cast<float>(float32_bits_at<Format>(logits + (i + lane) * kBytes));
      widened[i + lane] = x;
      const float less = x < first[lane] ? x : first[lane];
      second[lane] = less > second[lane] ? less : second[lane];
      first[lane] = x > first[lane] ? x : first[lane];
      wrong[lane] |= static_cast<uint32_t>(!(x <= std::numeric_limits<float>::max()));
    }
  }
  TwoLargest found;
  for (size_t lane = 0; lane < kLogitLanes; ++lane) {
    found.second = std::max({found.second, std::min(found.first, first[lane]), second[lane]});
    found.first = std::max(found.first, first[lane]);
    found.has_wrong |= wrong[lane] != 0;
  }
  return found;
}

float exp_of(float x) noexcept {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: what is added to it is rounded to integers
  const float clamped = x > kLowestFloat32Exponent ? x : kLowestFloat32Exponent;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = kExpOf[0];
  for (size_t i = 1; i < std::size(kExpOf); ++i) p = p * r + kExpOf[i];
  p = p * r * r + r + 1.0F;
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) << 23) + (127U << 23);
  const float result = p * std::bit_cast<float>(power);
  return x < kLowestFloat32Exponent ? 0.0F : result;
}

ExpSums add(const float* widened, size_t count, float max) noexcept {
  constexpr auto kLowest = static_cast<float>(-1000);
  std::array<float, kLogitLanes> exps{};
  std::array<float, kLogitLanes> weighted{};
  for (size_t i = 0; i < count; i += kLogitLanes) {
    for (size_t lane = 0; lane < kLogitLanes; ++lane) {
      const float difference = widened[i + lane] - max;
      const float y = difference > kLowest ? difference : kLowest;  // finite, for 0 * y
      const float e = exp_of(y);
      exps[lane] += e;
      weighted[lane] += y * e;
    }
  }
  ExpSums sums;
  for (size_t lane = 0; lane < kLogitLanes; ++lane) {
    sums.exps += exps[lane];
    sums.weighted += weighted[lane];
  }
  return sums;
}

}  // namespace

const LogitKernels kPortableLogitKernels = {
    widen<FloatFormat::kFloat32>,
    widen<FloatFormat::kFloat16>,
    widen<FloatFormat::kBFloat16>,
    add,
};

}  // namespace pertoken
