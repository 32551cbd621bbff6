// The inner loops for every processor.
#include <algorithm>
#include <bit>

#include "core/float_value.h"
#include "core/slot_kernels.h"

namespace pertoken {
namespace {

constexpr uint32_t kSmallestNormal = 1U << 23;

// 1 for what has no slot among those of normal values and zeros. Without a branch, which zeros
// among other values would make expensive.
uint32_t is_special(uint32_t bits) noexcept {
  const uint32_t magnitude = bits & ~kFloat32Sign;
  const bool is_normal = magnitude - kSmallestNormal < kFloat32Infinity - kSmallestNormal;
  return static_cast<uint32_t>(!is_normal) & static_cast<uint32_t>(magnitude != 0);
}

void add(uint32_t bits, size_t lane, LaneMoments& moments) noexcept {
  if ((bits & kFloat32Infinity) == kFloat32Infinity) return;
  const double value = std::bit_cast<float>(bits);
  moments.sum[lane] += value;
  moments.sum_sq[lane] += value * value;
  moments.min = value < moments.min ? value : moments.min;
  moments.max = value > moments.max ? value : moments.max;
}

// Loops over lanes that a compiler can turn into the vectors of the processor at hand.
template <FloatFormat Format>
void slots_and_moments(const std::byte* values, size_t count, uint16_t* slots,
                       LaneMoments& moments) noexcept {
  constexpr auto kBytes = static_cast<size_t>(bytes_of(Format));
  // In copies, which nothing else can point into.
  LaneMoments added = moments;
  std::array<float, kLanes> min;
  std::array<float, kLanes> max;
  min.fill(std::numeric_limits<float>::infinity());
  max.fill(-std::numeric_limits<float>::infinity());
  size_t done = 0;
  for (; done + kLanes <= count; done += kLanes) {
    std::array<uint32_t, kLanes> bits;
    uint32_t special = 0;
    for (size_t i = 0; i < kLanes; ++i) {
      bits[i] = float32_bits_at<Format>(values + (done + i) * kBytes);
    }
    for (size_t i = 0; i < kLanes; ++i) special |= is_special(bits[i]);
    if (special != 0) [[unlikely]] {
      for (size_t i = 0; i < kLanes; ++i) {
        slots[done + i] = static_cast<uint16_t>(slot_of(bits[i], kSlotCarries));
        add(bits[i], i, added);
      }
      continue;
    }
    for (size_t i = 0; i < kLanes; ++i) {
      slots[done + i] = static_cast<uint16_t>(slot_of_normal(bits[i], kSlotCarries));
    }
    for (size_t i = 0; i < kLanes; ++i) {
      const auto narrow = std::bit_cast<float>(bits[i]);
      const double value = narrow;
      added.sum[i] += value;
      added.sum_sq[i] += value * value;
      min[i] = narrow < min[i] ? narrow : min[i];
      max[i] = narrow > max[i] ? narrow : max[i];
    }
  }
  for (size_t i = 0; done + i < count; ++i) {
    const uint32_t bits = float32_bits_at<Format>(values + (done + i) * kBytes);
    slots[done + i] = static_cast<uint16_t>(slot_of(bits, kSlotCarries));
    add(bits, i, added);
  }
  added.min = std::min<double>(added.min, *std::min_element(min.begin(), min.end()));
  added.max = std::max<double>(added.max, *std::max_element(max.begin(), max.end()));
  moments = added;
}

}  // namespace

const SlotKernels kPortableSlotKernels = {
    slots_and_moments<FloatFormat::kFloat32>,
    slots_and_moments<FloatFormat::kFloat16>,
    slots_and_moments<FloatFormat::kBFloat16>,
};

}  // namespace pertoken
