// The tables, computed and proved while compiling.
#include "core/exp_boundaries.h"

#include <stdexcept>

namespace pertoken {
namespace {

__extension__ typedef unsigned __int128 Wide;

// 2^(1/2), 2^(1/4), ..., 2^(1/256), nearly: they only say where the search below begins.
constexpr double kRoots[kBoundaryScale] = {
    1.4142135623730951, 1.1892071150027210, 1.0905077326652577, 1.0442737824274138,
    1.0218971486541166, 1.0108892860517005, 1.0054299011128027, 1.0027112750502025};

// The upper 128 bits of a square.
constexpr Wide square_high(Wide x) {
  const Wide low = static_cast<uint64_t>(x);
  const Wide high = x >> 64;
  const Wide cross = low * high;
  const Wide middle = ((low * low) >> 64) + static_cast<uint64_t>(cross) * Wide{2};
  return high * high + (cross >> 64) * 2 + (middle >> 64);
}

// Whether (1 + mantissa/2^52)^256 <= 2^j, for 0 < j < 256. The power is squared up in 128 bits,
// rounded down each time, so what is found too large is so. Rounding loses at most one unit a
// squaring, and a squaring at most quadruples what was lost before: below 2^20 units in the end. A
// power that is found to be below 2^j by more than that is so, too; a nearer one fails to compile.
constexpr bool is_below(uint64_t mantissa, int j) {
  Wide power = Wide{mantissa | uint64_t{1} << kMantissaBits} << (127 - kMantissaBits);
  int exponent = 0;
  for (int i = 0; i < kBoundaryScale; ++i) {
    power = square_high(power);
    exponent *= 2;
    if (power >> 127 != 0) {
      ++exponent;
    } else {
      power <<= 1;
    }
  }
  if (exponent >= j) return false;
  if (exponent == j - 1 && ~power < (Wide{1} << 20)) throw std::logic_error("too near");
  return true;
}

constexpr uint64_t rounded_down_boundary(int j) {
  if (j == 0) return 0;
  double near = 1.0;
  for (int i = 0; i < kBoundaryScale; ++i) {
    if ((j >> (kBoundaryScale - 1 - i) & 1) != 0) near *= kRoots[i];
  }
  uint64_t mantissa = std::bit_cast<uint64_t>(near) & kMantissaMask;
  while (!is_below(mantissa, j)) --mantissa;
  while (is_below(mantissa + 1, j)) ++mantissa;
  return mantissa;
}

constexpr OctaveTables make_tables() {
  OctaveTables tables{};
  for (int j = 0; j < kBucketsPerOctave; ++j) {
    tables.boundary[static_cast<size_t>(j)] = rounded_down_boundary(j);
  }
  tables.boundary[kBucketsPerOctave] = UINT64_MAX;
  uint16_t below = 0;
  for (uint64_t bin = 0; bin < kBucketsPerOctave; ++bin) {
    const uint64_t lowest = bin << (kMantissaBits - kBoundaryScale);
    while (lowest > tables.boundary[below]) ++below;
    tables.first[bin] = below;
  }
  return tables;
}

}  // namespace

constexpr OctaveTables kOctave = make_tables();

}  // namespace pertoken
