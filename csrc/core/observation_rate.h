// Which steps are observed, at a fixed rate: of the steps of each kind the first one, and then one
// of every `every`, at a random place among them. A fixed place would be in step with whatever else
// recurs; and kinds are counted apart, so that a rare one is not missed by chance. The weight of a
// step is 1 / the probability that it was observed: sums over observed steps, weighted, estimate
// those over all without bias.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "core/record.h"

namespace pertoken {

class ObservationRate {
 public:
  // `every` is at least 1, which observes all. The same seed chooses the same steps.
  ObservationRate(uint32_t every, uint64_t seed) noexcept : every_(every), seed_(seed) {}

  // The weight of the next step of a kind, which may be kOutsideSteps; 0 when it is not observed.
  // Any thread.
  double next(uint8_t kind) noexcept {
    // Relaxed: only that no two steps have the same number matters.
    const uint64_t number = begun_[kind].fetch_add(1, std::memory_order_relaxed);
    if (number == 0) return 1;
    const uint64_t block = (number - 1) / every_;
    const uint64_t place = (number - 1) % every_;
    return place == mixed(seed_ ^ mixed(block * (kKinds + 1) + kind)) % every_ ? every_ : 0;
  }

 private:
  static constexpr size_t kKinds = kStepKinds + 1;

  // The finaliser of SplitMix64: every bit of the result depends on every bit of the argument.
  static constexpr uint64_t mixed(uint64_t bits) noexcept {
    bits += 0x9e3779b97f4a7c15U;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
    return bits ^ (bits >> 31);
  }

  const uint32_t every_;
  const uint64_t seed_;
  std::array<std::atomic<uint64_t>, kKinds> begun_{};
};

}  // namespace pertoken
