// Where the buckets of an exponential histogram begin and end, exactly. Pure; any thread.
//
// Within an octave the boundaries at the finest scale are 2^(j/256). All but the first are
// irrational, so no double lies on one, and "value > boundary" is the same as "value > the
// boundary rounded down to a double". So a table of boundaries rounded down decides every double
// exactly; an approximate logarithm or a boundary rounded up does not. Coarser scales need no
// tables: their buckets are unions of 2^n finer ones, index >> n.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace pertoken {

inline constexpr int kBoundaryScale = 8;
inline constexpr int kBucketsPerOctave = 1 << kBoundaryScale;
inline constexpr int kMantissaBits = 52;
inline constexpr uint64_t kMantissaMask = (uint64_t{1} << kMantissaBits) - 1;

struct OctaveTables {
  // The 52 mantissa bits of 2^(j/256) rounded down; one entry more, larger than any mantissa.
  std::array<uint64_t, kBucketsPerOctave + 1> boundary;
  // For the mantissas that begin with these 8 bits: the number of boundaries below all of them.
  std::array<uint16_t, kBucketsPerOctave> first;
};

extern const OctaveTables kOctave;

// The bucket, at scale 8, of a finite value > 0.
inline int32_t finest_bucket_index(double value) noexcept {
  uint64_t bits = std::bit_cast<uint64_t>(value);
  int exponent = static_cast<int>(bits >> kMantissaBits) - 1023;
  if (exponent == -1023) [[unlikely]] {
    // A subnormal, made normal without rounding.
    bits = std::bit_cast<uint64_t>(value * 0x1p52);
    exponent = static_cast<int>(bits >> kMantissaBits) - 1023 - kMantissaBits;
  }
  const uint64_t mantissa = bits & kMantissaMask;
  // At most two boundaries share their first 8 bits: they are 1/256 * ln 2 or more apart.
  int32_t below = kOctave.first[mantissa >> (kMantissaBits - kBoundaryScale)];
  below += mantissa > kOctave.boundary[static_cast<size_t>(below)];
  below += mantissa > kOctave.boundary[static_cast<size_t>(below)];
  return exponent * kBucketsPerOctave + below - 1;
}

}  // namespace pertoken
