// The inner loops for every processor.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

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

// Vectors that every processor has, spelled out: left to itself, the compiler takes what may raise
// a floating-point exception for control flow.
constexpr size_t kVectorLanes = 4;
using Floats [[gnu::vector_size(kVectorLanes * sizeof(float))]] = float;
using Words [[gnu::vector_size(kVectorLanes * sizeof(float))]] = uint32_t;

Floats larger(Floats x, float least) noexcept { return x > least ? x : Floats{} + least; }

// Of what is at least kLowest.
Floats exp_of(Floats x) noexcept {
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: what is added to it is rounded to integers
  const Floats clamped = larger(x, kLowestFloat32Exponent);
  const Floats shifted = clamped * kLog2E + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (clamped - n * kLn2High) - n * kLn2Low;
  Floats p = Floats{} + kExpOf[0];
  for (size_t i = 1; i < std::size(kExpOf); ++i) p = p * r + kExpOf[i];
  p = p * r * r + r + 1.0F;
  const Words power = (std::bit_cast<Words>(shifted) << 23) + (127U << 23);
  const Floats result = p * std::bit_cast<Floats>(power);
  return x < kLowestFloat32Exponent ? Floats{} : result;
}

ExpSums add(const float* widened, size_t count, float max) noexcept {
  constexpr float kLowest = -1000;
  constexpr size_t kVectors = kLogitLanes / kVectorLanes;
  std::array<Floats, kVectors> exps{};
  std::array<Floats, kVectors> weighted{};
  for (size_t i = 0; i < count; i += kLogitLanes) {
    for (size_t vector = 0; vector < kVectors; ++vector) {
      Floats logits;
      std::memcpy(&logits, widened + i + vector * kVectorLanes, sizeof(logits));
      const Floats y = larger(logits - max, kLowest);  // finite, for 0 * y
      const Floats e = exp_of(y);
      exps[vector] += e;
      weighted[vector] += y * e;
    }
  }
  ExpSums sums;
  for (size_t lane = 0; lane < kLogitLanes; ++lane) {
    sums.exps += exps[lane / kVectorLanes][lane % kVectorLanes];
    sums.weighted += weighted[lane / kVectorLanes][lane % kVectorLanes];
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
