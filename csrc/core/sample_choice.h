// What a sampler decides of steps: which details each gets, and with what probability. Plain data.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/record.h"

namespace pertoken {

// What is decided apart. A further one is a further name here, a decide() and a charge() in the
// root's wrapper, and its costs in SamplerOptions.
enum class SampleDetail : uint8_t { kSpans, kObservations, kLogits };
inline constexpr size_t kSampleDetails = 3;

template <typename Value>
using ByDetail = std::array<Value, kSampleDetails>;

struct SampleChoice {
  int level = -1;          // -1: the step alone
  double weight = 0;       // 1 / the probability of exactly this level; 0 for none
  double probability = 0;  // of any level
};

// What was decided of one step, for the record of its end: of each detail the probability of any
// level, to three digits, and whether it got one.
class PackedChoices {
 public:
  PackedChoices() = default;
  explicit PackedChoices(uint64_t bits) : bits_(bits) {}

  void add(SampleDetail detail, const SampleChoice& choice) noexcept {
    // The upper half of a float; its sign says that there is detail.
    const auto half = std::bit_cast<uint32_t>(static_cast<float>(choice.probability)) >> 16;
    bits_ |= uint64_t{half | (choice.level < 0 ? 0u : 0x8000u)} << shift(detail);
  }
  bool got(SampleDetail detail) const noexcept { return (bits_ >> shift(detail) & 0x8000) != 0; }
  bool got_any() const noexcept { return (bits_ & 0x8000'8000'8000'8000) != 0; }
  // 0: there was nothing to decide.
  double probability(SampleDetail detail) const noexcept {
    const auto half = static_cast<uint32_t>(bits_ >> shift(detail) & 0x7FFF);
    return std::bit_cast<float>(half << 16);
  }
  uint64_t bits() const noexcept { return bits_; }

 private:
  static_assert(kSampleDetails <= 4, "they share 64 bits of a record");
  static constexpr unsigned shift(SampleDetail detail) noexcept {
    return 16 * static_cast<unsigned>(detail);
  }

  uint64_t bits_ = 0;
};

// Steps of a kind that were decided on before they begin, see Sampler::decide_ahead().
struct StepsAhead {
  uint32_t plain = 0;  // so many, next, get no detail
  StepKind kind = StepKind::kOther;
  uint8_t decided = 0;    // a bit a detail that was decided on
  bool has_next = false;  // so was the step behind the plain ones, which gets some
  PackedChoices choices;  // of each of the plain ones
};

// How a step is decided on: by coins of its own, or as it was ahead, among the plain ones or behind
// them.
enum class StepPlace : uint8_t { kOwn, kPlain, kNext };

}  // namespace pertoken
