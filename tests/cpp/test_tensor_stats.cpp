// The kernels of every set of instructions that this processor has, against the reference: counts
// exactly, sums against long doubles, and against each other to the bit.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "core/float_value.h"
#include "core/tensor_stats.h"
#include "tensor_values.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using namespace pertoken::testing;
using pertoken::ExpHistogram;
using pertoken::FloatFormat;
using pertoken::histogram_of;
using pertoken::InstructionSet;
using pertoken::reference_histogram_of;
using pertoken::TensorView;

constexpr FloatFormat kFormats[] = {
    FloatFormat::kFloat64,    FloatFormat::kFloat32,        FloatFormat::kFloat16,
    FloatFormat::kBFloat16,   FloatFormat::kFloat8E4M3FN,   FloatFormat::kFloat8E4M3FNUZ,
    FloatFormat::kFloat8E5M2, FloatFormat::kFloat8E5M2FNUZ,
};

std::vector<InstructionSet> sets_here() {
  std::vector<InstructionSet> sets;
  for (const auto set :
       {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    if (pertoken::is_supported(set)) sets.push_back(set);
  }
  return sets;
}

void check_same_counts(const ExpHistogram& actual, const ExpHistogram& expected) {
  CHECK(actual.positive() == expected.positive());
  CHECK(actual.negative() == expected.negative());
  CHECK_EQ(actual.scale(), expected.scale());
  CHECK_EQ(actual.count(), expected.count());
  CHECK_EQ(actual.zero_count(), expected.zero_count());
  CHECK_EQ(actual.nan_count(), expected.nan_count());
  CHECK_EQ(actual.pos_inf_count(), expected.pos_inf_count());
  CHECK_EQ(actual.neg_inf_count(), expected.neg_inf_count());
  if (expected.count() == 0) {
    CHECK(std::isnan(actual.min()) && std::isnan(actual.max()));
    return;
  }
  CHECK_EQ(actual.min(), expected.min());
  CHECK_EQ(actual.max(), expected.max());
  CHECK(!(actual.min() == 0 && std::signbit(actual.min())));
  CHECK(!(actual.max() == 0 && std::signbit(actual.max())));
}

// Counts as of the reference; sums the same to the bit with all sets.
void check_all(const TensorView& view, int scale) {
  const ExpHistogram expected = reference_histogram_of(view, scale);
  const ExpHistogram portable = histogram_of(view, scale, InstructionSet::kPortable);
  for (const InstructionSet set : sets_here()) {
    const ExpHistogram actual = histogram_of(view, scale, set);
    check_same_counts(actual, expected);
    CHECK(actual == portable);
  }
}

template <typename Bits>
std::vector<std::byte> every_pattern() {
  std::vector<Bits> patterns;
  for (uint32_t bits = 0; bits < (1U << (8 * sizeof(Bits))); ++bits) {
    patterns.push_back(static_cast<Bits>(bits));
  }
  return bytes_of_all(patterns);
}

}  // namespace

TEST(the_best_set_of_instructions_is_the_last_that_is_supported) {
  CHECK(pertoken::best_instruction_set() == sets_here().back());
}

TEST(every_pattern_of_the_narrow_formats_at_every_scale) {
  const auto halves = every_pattern<uint16_t>();
  const auto bytes = every_pattern<uint8_t>();
  for (int scale = pertoken::kMinHistogramScale; scale <= pertoken::kMaxHistogramScale; ++scale) {
    for (const FloatFormat format : kFormats) {
      if (pertoken::bytes_of(format) == 2) check_all(view_of(halves, format), scale);
      if (pertoken::bytes_of(format) == 1) check_all(view_of(bytes, format), scale);
    }
  }
}

// One by one, so that no count of one pattern can stand in for that of another.
TEST(each_pattern_of_a_16_bit_format_alone) {
  for (uint32_t bits = 0; bits < 65536; bits += 1) {
    const auto half = static_cast<uint16_t>(bits);
    std::byte two[2 * 17];
    for (size_t i = 0; i < 17; ++i) std::memcpy(two + 2 * i, &half, 2);
    const FloatFormat format = bits % 2 == 0 ? FloatFormat::kFloat16 : FloatFormat::kBFloat16;
    const TensorView view = view_of(two, format, 17);
    const ExpHistogram expected = reference_histogram_of(view, 3);
    for (const InstructionSet set : sets_here()) {
      const ExpHistogram actual = histogram_of(view, 3, set);
      if (actual.positive() == expected.positive() && actual.negative() == expected.negative() &&
          actual.count() == expected.count() && actual.zero_count() == expected.zero_count() &&
          actual.nan_count() == expected.nan_count()) {
        continue;
      }
      check_same_counts(actual, expected);
    }
  }
}

TEST(random_and_adversarial_values_at_every_scale) {
  for (int scale = pertoken::kMinHistogramScale; scale <= pertoken::kMaxHistogramScale; ++scale) {
    const auto seed = static_cast<uint64_t>(scale + 100);
    check_all(view_of(normal_float32(9001, seed), FloatFormat::kFloat32), scale);
    check_all(view_of(adversarial_float32(9001, seed), FloatFormat::kFloat32), scale);
    const auto bytes = random_bytes(9001 * 8, seed);
    for (const FloatFormat format : kFormats) check_all(view_of(bytes, format), scale);
  }
}

TEST(every_length_up_to_300_and_round_a_block_from_unaligned_addresses) {
  const auto values = adversarial_float32(9000, 5);
  const auto bytes = random_bytes(40000, 6);
  std::vector<size_t> lengths = {4095, 4096, 4097, 8191, 8192, 8193};
  for (size_t length = 0; length <= 300; ++length) lengths.push_back(length);
  for (const size_t length : lengths) {
    check_all(view_of(values.data(), FloatFormat::kFloat32, length), 3);
    for (const FloatFormat format : kFormats) {
      const size_t shift = 1 + length % 7;
      const size_t fits = (bytes.size() - shift) / static_cast<size_t>(pertoken::bytes_of(format));
      check_all(view_of(bytes.data() + shift, format, std::min(length, fits)), 3);
    }
  }
}

TEST(constants_of_every_kind) {
  for (const float value : {0.0F, -0.0F, 1.0F, -1.5F, 1e-40F, -1e-44F, INFINITY, -INFINITY, NAN,
                            3.4028235e38F, 1.1754944e-38F}) {
    check_all(view_of(bytes_of_all(std::vector<float>(5000, value)), FloatFormat::kFloat32), 3);
  }
}

// All in one slot of one table, and more of them than a table of 16 bits could count.
TEST(counts_do_not_overflow_where_all_values_are_alike) {
  const auto values = bytes_of_all(std::vector<uint16_t>(1000000, 0x3f80));
  const ExpHistogram histogram = histogram_of(view_of(values, FloatFormat::kBFloat16), 3);
  CHECK_EQ(histogram.count(), 1000000U);
  CHECK_EQ(histogram.sum(), 1000000.0);
  CHECK_EQ(histogram.sum_sq(), 1000000.0);
}

// The error is a few units of the last place of the sum of sizes, however many values there are.
TEST(sums_are_close_to_those_in_long_double) {
  if (std::numeric_limits<long double>::digits < 64) return;
  const auto bytes = normal_float32(1000003, 7);
  const TensorView view = view_of(bytes, FloatFormat::kFloat32);
  long double sum = 0;
  long double sizes = 0;
  long double sum_sq = 0;
  for (size_t i = 0; i < 1000003; ++i) {
    const long double value = pertoken::value_at(bytes.data() + 4 * i, FloatFormat::kFloat32);
    sum += value;
    sizes += std::abs(value);
    sum_sq += value * value;
  }
  const ExpHistogram histogram = histogram_of(view, 3);
  CHECK(std::abs(histogram.sum() - sum) <= sizes * 0x1p-50L);
  CHECK(std::abs(histogram.sum_sq() - sum_sq) <= sum_sq * 0x1p-46L);
}

TEST(a_call_leaves_nothing_behind_for_the_next) {
  const auto first = adversarial_float32(20000, 8);
  const auto second = normal_float32(100, 9);
  for (const InstructionSet set : sets_here()) {
    histogram_of(view_of(first, FloatFormat::kFloat32), 3, set);
    check_same_counts(histogram_of(view_of(second, FloatFormat::kFloat32), 3, set),
                      reference_histogram_of(view_of(second, FloatFormat::kFloat32), 3));
  }
}

TEST(threads_count_each_for_itself) {
  const auto bytes = normal_float32(200000, 10);
  const TensorView view = view_of(bytes, FloatFormat::kFloat32);
  const ExpHistogram expected = histogram_of(view, 3);
  std::vector<ExpHistogram> found(4);
  std::vector<std::thread> threads;
  threads.reserve(found.size());
  for (ExpHistogram& histogram : found) {
    threads.emplace_back([&] { histogram = histogram_of(view, 3); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const ExpHistogram& histogram : found) CHECK(histogram == expected);
}

#if defined(__x86_64__)
// As torch.set_flush_denormal(True) leaves it; and rounding upwards.
TEST(the_hosts_floating_point_settings_change_nothing_and_are_kept) {
  const auto bytes = adversarial_float32(5000, 11);
  const auto doubles = bytes_of_all(std::vector<double>{1e-310, -1e-320, 5e-324, 1.0});
  std::vector<ExpHistogram> expected;
  const auto run = [&] {
    std::vector<ExpHistogram> all;
    for (const InstructionSet set : sets_here()) {
      all.push_back(histogram_of(view_of(bytes, FloatFormat::kFloat32), 3, set));
      all.push_back(histogram_of(view_of(bytes, FloatFormat::kFloat32), 8, set));
      all.push_back(histogram_of(view_of(doubles, FloatFormat::kFloat64), 3, set));
    }
    return all;
  };
  expected = run();
  const uint32_t host = _mm_getcsr();
  const uint32_t odd = 0x1f80 | 0x8040 | 0x4000;
  _mm_setcsr(odd);
  const auto found = run();
  const uint32_t after = _mm_getcsr();
  _mm_setcsr(host);
  CHECK_EQ(after, odd);
  CHECK(found == expected);
}
#endif

TEST(scales_out_of_range_are_refused) {
  const auto bytes = normal_float32(10, 12);
  for (const int scale : {-11, 9, 1000}) {
    bool refused = false;
    try {
      histogram_of(view_of(bytes, FloatFormat::kFloat32), scale);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}
