// The formats and slots that processors and GPUs share: widening against the definition of each
// format, slots against the bucket of the double that has the same value.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/exp_histogram.h"
#include "core/float_bits.h"
#include "core/float_value.h"

namespace {

using pertoken::FloatFormat;
using pertoken::kSlotCarries;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// By the definition of such formats, in floating-point arithmetic.
double value_by_definition(uint32_t bits, int width, int mantissa_bits, int bias) {
  const uint32_t mantissa = bits & ((1U << mantissa_bits) - 1);
  const auto exponent =
      static_cast<int>(bits >> mantissa_bits & ((1U << (width - 1 - mantissa_bits)) - 1));
  const double sign = (bits >> (width - 1) & 1) != 0 ? -1.0 : 1.0;
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

double with_ieee_specials(double value, uint32_t bits, int mantissa_bits, uint32_t sign) {
  const uint32_t magnitude = bits & (sign - 1);
  const uint32_t infinity = sign - (1U << mantissa_bits);
  if (magnitude > infinity) return kNan;
  if (magnitude == infinity) return (bits & sign) != 0 ? -kInfinity : kInfinity;
  return value;
}

void check_same(double actual, double expected) {
  if (std::isnan(expected)) {
    CHECK(std::isnan(actual));
    return;
  }
  CHECK_EQ(actual, expected);
  CHECK_EQ(std::signbit(actual), std::signbit(expected));
}

template <FloatFormat Format>
double widened(uint32_t bits) {
  return std::bit_cast<float>(pertoken::widened_bits<Format>(bits));
}

// What add_slot() in tensor_stats.cpp makes of a slot, said the other way round.
uint32_t expected_slot(float value) {
  if (std::isnan(value)) return pertoken::kNanSlot;
  if (std::isinf(value)) return value > 0 ? pertoken::kPosInfSlot : pertoken::kNegInfSlot;
  if (value == 0) return std::signbit(value) ? pertoken::kNegZeroSlot : pertoken::kPosZeroSlot;
  const int index = pertoken::bucket_index(std::abs(static_cast<double>(value)), 3);
  if (std::abs(value) < std::numeric_limits<float>::min()) {
    return static_cast<uint32_t>(index + 149 * 8 + 1 + 4096 + (value < 0 ? 192 : 0));
  }
  return static_cast<uint32_t>(index + 127 * 8 + (value < 0 ? 2048 : 0));
}

void check_slot(uint32_t bits) {
  CHECK_EQ(pertoken::slot_of(bits, kSlotCarries), expected_slot(std::bit_cast<float>(bits)));
}

}  // namespace

TEST(every_pattern_of_the_16_bit_formats_widens_to_its_value) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    check_same(widened<FloatFormat::kFloat16>(bits),
               with_ieee_specials(value_by_definition(bits, 16, 10, 15), bits, 10, 0x8000));
    check_same(widened<FloatFormat::kBFloat16>(bits),
               with_ieee_specials(value_by_definition(bits, 16, 7, 127), bits, 7, 0x8000));
  }
}

TEST(every_pattern_of_the_8_bit_formats_widens_to_its_value) {
  for (uint32_t bits = 0; bits < 256; ++bits) {
    check_same(widened<FloatFormat::kFloat8E5M2>(bits),
               with_ieee_specials(value_by_definition(bits, 8, 2, 15), bits, 2, 0x80));
    const bool is_nan = (bits & 0x7f) == 0x7f;
    check_same(widened<FloatFormat::kFloat8E4M3FN>(bits),
               is_nan ? kNan : value_by_definition(bits, 8, 3, 7));
    check_same(widened<FloatFormat::kFloat8E4M3FNUZ>(bits),
               bits == 0x80 ? kNan : value_by_definition(bits, 8, 3, 8));
    check_same(widened<FloatFormat::kFloat8E5M2FNUZ>(bits),
               bits == 0x80 ? kNan : value_by_definition(bits, 8, 2, 16));
  }
}

TEST(float32_bits_give_the_double_of_the_same_value) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<uint32_t>(random()) >> (i % 3 == 0 ? 9 : 0);
    check_same(pertoken::double_of(bits), std::bit_cast<float>(bits));
  }
}

// Every boundary of every octave, with the floats on both sides of it, and both signs.
TEST(slots_change_exactly_at_the_boundaries) {
  for (uint32_t exponent = 0; exponent < 256; ++exponent) {
    for (size_t j = 0; j <= 256; j += 16) {
      const auto mantissa =
          j == 256 ? 0x7fffffU : static_cast<uint32_t>(pertoken::kOctave.boundary[j] >> 29);
      for (int beside = -2; beside <= 2; ++beside) {
        const uint32_t bits = (exponent << 23) + mantissa + static_cast<uint32_t>(beside);
        check_slot(bits);
        check_slot(bits ^ pertoken::kFloat32Sign);
      }
    }
  }
}

TEST(slots_of_random_bits_and_of_every_start_of_a_float) {
  std::mt19937 random(2);
  for (int i = 0; i < 500000; ++i) check_slot(static_cast<uint32_t>(random()));
  for (uint32_t start = 0; start < 65536; ++start) {
    check_slot(start << 16);
    check_slot(start << 16 | 0xffff);
  }
}

// Powers of two and their neighbours, and every subnormal of few bits.
TEST(slots_of_subnormals) {
  for (uint32_t mantissa = 1; mantissa < 70000; ++mantissa) {
    check_slot(mantissa);
    check_slot((1U << 23) - mantissa);
    check_slot(mantissa | pertoken::kFloat32Sign);
  }
  for (int bit = 0; bit < 23; ++bit) {
    for (uint32_t beside = 0; beside < 3; ++beside) check_slot((1U << bit) + beside - 1);
  }
}

TEST(every_slot_is_inside_the_table_and_no_two_meanings_share_one) {
  CHECK_EQ(pertoken::slot_of(0x007fffffU, kSlotCarries), 4096U + 184U);
  CHECK_EQ(pertoken::slot_of(0x00800000U, kSlotCarries), 7U);
  CHECK_EQ(pertoken::slot_of(0x7f7fffffU, kSlotCarries), 2039U);
  CHECK_EQ(pertoken::slot_of(0x80800000U, kSlotCarries), 2055U);
  CHECK_EQ(pertoken::slot_of(0xff7fffffU, kSlotCarries), 4087U);
  CHECK(pertoken::slot_of(0x807fffffU, kSlotCarries) < static_cast<uint32_t>(pertoken::kSlots));
}
