// The exponential histogram against exact statements about its layout: powers of the base, their
// neighbouring doubles, nesting of scales; and against sorted values.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/exp_histogram.h"

namespace {

using pertoken::bucket_index;
using pertoken::bucket_upper_bound;
using pertoken::ExpHistogram;
using pertoken::kMaxHistogramScale;
using pertoken::kMinHistogramScale;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallest = std::numeric_limits<double>::denorm_min();
constexpr double kLargest = std::numeric_limits<double>::max();

double above(double x) { return std::nextafter(x, kInfinity); }
double below(double x) { return std::nextafter(x, -kInfinity); }

int32_t floor_shift(int64_t value, int bits) { return static_cast<int32_t>(value >> bits); }

// Values over all magnitudes, subnormals and both signs of exponent included.
std::vector<double> many_values(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> values;
  while (values.size() < n) {
    const double value = std::bit_cast<double>(random() & 0x7fffffffffffffffULL);
    if (std::isfinite(value) && value > 0) values.push_back(value);
  }
  return values;
}

ExpHistogram histogram_of(const std::vector<double>& values, int scale) {
  ExpHistogram histogram(scale);
  for (const double value : values) histogram.record(value);
  return histogram;
}

bool same_counts(const ExpHistogram& a, const ExpHistogram& b) {
  return a.scale() == b.scale() && a.positive() == b.positive() && a.negative() == b.negative() &&
         a.count() == b.count() && a.zero_count() == b.zero_count() &&
         a.nan_count() == b.nan_count() && a.pos_inf_count() == b.pos_inf_count() &&
         a.neg_inf_count() == b.neg_inf_count() && a.min() == b.min() && a.max() == b.max();
}

}  // namespace

// A power of two is the upper, included bound of its bucket at every scale; the double above it is
// in the next. Over all exponents, so subnormal powers too.
TEST(bucket_index_at_powers_of_two_and_beside_them) {
  for (int exponent = -1074; exponent <= 1023; ++exponent) {
    const double power = std::ldexp(1.0, exponent);
    for (int scale = kMinHistogramScale; scale <= kMaxHistogramScale; ++scale) {
      const int64_t finest = int64_t{exponent} * 256;
      const int shift = kMaxHistogramScale - scale;
      CHECK_EQ(bucket_index(power, scale), floor_shift(finest - 1, shift));
      // Beside a subnormal power the next double can be more than a bucket away.
      if (exponent >= -1022)
        CHECK_EQ(bucket_index(above(power), scale), floor_shift(finest, shift));
    }
  }
}

// 2^(j/256) for every j of an octave, decided without the library's tables: in long double powers
// of the candidate double and its neighbour (their 256th powers differ by 2^-44, far more than
// 64-bit arithmetic loses).
TEST(boundaries_inside_an_octave_lie_between_neighbouring_doubles) {
  if (std::numeric_limits<long double>::digits < 64) return;
  for (int j = 1; j < 256; ++j) {
    const double bound = bucket_upper_bound(j - 1, 8);
    const auto power = [](double base) {
      long double result = base;
      for (int i = 0; i < 8; ++i) result *= result;
      return result;
    };
    const long double exact = std::ldexp(1.0L, j);
    CHECK(power(bound) < exact);
    CHECK(power(above(bound)) > exact);
    CHECK_EQ(bucket_index(bound, 8), j - 1);
    CHECK_EQ(bucket_index(above(bound), 8), j);
    CHECK_EQ(bucket_index(below(bound), 8), j - 1);
  }
}

// At every power of the base of every scale, over the whole range of doubles: the bound is the
// last of its bucket, one step above is in the next bucket.
TEST(every_bucket_ends_at_its_upper_bound) {
  for (int scale = kMinHistogramScale; scale <= kMaxHistogramScale; ++scale) {
    const int32_t lowest = bucket_index(std::numeric_limits<double>::min(), scale);
    const int32_t highest = bucket_index(kLargest, scale);
    for (int32_t index = lowest; index < highest; ++index) {
      const double bound = bucket_upper_bound(index, scale);
      CHECK_EQ(bucket_index(bound, scale), index);
      CHECK_EQ(bucket_index(above(bound), scale), index + 1);
    }
    CHECK(bucket_upper_bound(highest, scale) >= kLargest);
  }
}

TEST(bucket_index_of_extremes) {
  for (int scale = kMinHistogramScale; scale <= kMaxHistogramScale; ++scale) {
    const int shift = kMaxHistogramScale - scale;
    CHECK_EQ(bucket_index(kLargest, scale), floor_shift(1024 * 256 - 1, shift));
    CHECK_EQ(bucket_index(kSmallest, scale), floor_shift(-1074 * 256 - 1, shift));
    CHECK_EQ(bucket_index(3 * kSmallest, scale), floor_shift(-1074 * 256 + 405, shift));
    CHECK_EQ(bucket_index(1.0, scale), -1);
    CHECK_EQ(bucket_index(above(1.0), scale), 0);
  }
  CHECK_EQ(bucket_upper_bound(0, 0), 2.0);
  CHECK_EQ(bucket_upper_bound(-1, 3), 1.0);
  CHECK_EQ(bucket_upper_bound(1023, 0), kInfinity);
  CHECK_EQ(bucket_upper_bound(-1075, 0), kSmallest);
  CHECK_EQ(bucket_upper_bound(-1076, 0), 0.0);
}

// Subnormal bounds are rounded down, too, never up past the boundary.
TEST(subnormal_values_are_within_their_bounds) {
  for (const double start : {1.0, 2.0, 3.0, 5.0, 1000.0, 12345.0, 0x1p51, 0x1p52 - 1}) {
    const double value = start * kSmallest;
    for (int scale = kMinHistogramScale; scale <= kMaxHistogramScale; ++scale) {
      const int32_t index = bucket_index(value, scale);
      CHECK(value <= bucket_upper_bound(index, scale));
      CHECK(value > bucket_upper_bound(index - 1, scale));
    }
  }
}

TEST(random_values_are_within_their_bounds) {
  for (const double value : many_values(20000, 1)) {
    for (int scale = kMinHistogramScale; scale <= kMaxHistogramScale; ++scale) {
      const int32_t index = bucket_index(value, scale);
      CHECK(value <= bucket_upper_bound(index, scale));
      CHECK(value > bucket_upper_bound(index - 1, scale));
    }
  }
}

TEST(every_kind_of_value_has_its_counter) {
  ExpHistogram histogram;
  CHECK_EQ(histogram.scale(), 3);
  CHECK(std::isnan(histogram.min()) && std::isnan(histogram.max()));
  histogram.record(0.0, 2);
  histogram.record(-0.0);
  histogram.record(std::nan(""), 4);
  histogram.record(kInfinity, 5);
  histogram.record(-kInfinity, 6);
  histogram.record(2.0, 7);
  histogram.record(-8.0, 8);
  histogram.record(100.0, 0);
  CHECK_EQ(histogram.zero_count(), 3u);
  CHECK_EQ(histogram.nan_count(), 4u);
  CHECK_EQ(histogram.pos_inf_count(), 5u);
  CHECK_EQ(histogram.neg_inf_count(), 6u);
  CHECK_EQ(histogram.count(), 3u + 7u + 8u);
  CHECK_EQ(histogram.sum(), 14.0 - 64.0);
  CHECK_EQ(histogram.sum_sq(), 28.0 + 512.0);
  CHECK_EQ(histogram.min(), -8.0);
  CHECK_EQ(histogram.max(), 2.0);
  CHECK_EQ(histogram.positive().offset, 7);
  CHECK_EQ(histogram.negative().offset, 23);
  CHECK_EQ(histogram.positive().counts.size(), 1u);
  CHECK_EQ(histogram.negative().counts[0], 8u);
}

TEST(nanoseconds_are_recorded_as_doubles_are) {
  std::mt19937_64 random(2);
  ExpHistogram by_ns;
  ExpHistogram by_value;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t ns = std::max<uint64_t>(3, random() >> (random() % 64));
    by_ns.record_ns(ns);
    by_value.record(static_cast<double>(ns));
  }
  CHECK(by_ns == by_value);
  CHECK_EQ(by_ns.min(), 3.0);
  by_ns.record_ns(0);
  by_value.record(0.0);
  CHECK(by_ns == by_value);
  CHECK_EQ(by_ns.zero_count(), 1u);
  for (int bit = 0; bit < 53; ++bit) {
    const uint64_t power = uint64_t{1} << bit;
    ExpHistogram at;
    ExpHistogram past;
    at.record_ns(power);
    past.record_ns(power + 1);
    CHECK_EQ(at.positive().offset, bit * 8 - 1);
    if (bit >= 4) CHECK_EQ(past.positive().offset, bit * 8);
  }
}

TEST(buckets_grow_at_both_ends) {
  ExpHistogram histogram;
  for (const double value : {1.0, 1e6, 1e-6, 1e3, 1.0}) histogram.record(value);
  const pertoken::Buckets& buckets = histogram.positive();
  uint64_t total = 0;
  for (const uint64_t n : buckets.counts) total += n;
  CHECK_EQ(total, 5u);
  CHECK_EQ(buckets.offset, bucket_index(1e-6, 3));
  CHECK_EQ(buckets.counts.size(),
           static_cast<size_t>(bucket_index(1e6, 3) - bucket_index(1e-6, 3) + 1));
  CHECK_EQ(buckets.counts[static_cast<size_t>(-1 - buckets.offset)], 2u);
}

TEST(downscale_equals_recording_at_the_lower_scale) {
  std::vector<double> values = many_values(3000, 3);
  for (size_t i = 0; i < values.size(); i += 3) values[i] = -values[i];
  for (int from = kMinHistogramScale; from <= kMaxHistogramScale; from += 3) {
    for (int to = kMinHistogramScale; to <= from; ++to) {
      ExpHistogram histogram = histogram_of(values, from);
      histogram.downscale(to);
      CHECK(same_counts(histogram, histogram_of(values, to)));
    }
  }
}

TEST(merge_is_associative_and_commutative_and_equals_recording_all) {
  const std::vector<double> a = many_values(500, 4);
  std::vector<double> b = many_values(700, 5);
  std::vector<double> c = {0.0, kInfinity, -kInfinity, std::nan(""), -3.0, 1e-320};
  for (double& value : b) value = -value;
  std::vector<double> all = a;
  all.insert(all.end(), b.begin(), b.end());
  all.insert(all.end(), c.begin(), c.end());
  for (const int other_scale : {8, 3, 1, -2}) {
    const ExpHistogram x = histogram_of(a, 3);
    const ExpHistogram y = histogram_of(b, other_scale);
    const ExpHistogram z = histogram_of(c, 5);
    ExpHistogram left = x;
    left.merge(y);
    left.merge(z);
    ExpHistogram right = y;
    right.merge(z);
    ExpHistogram outer = x;
    outer.merge(right);
    ExpHistogram swapped = z;
    swapped.merge(y);
    swapped.merge(x);
    CHECK(same_counts(left, outer));
    CHECK(same_counts(left, swapped));
    CHECK(same_counts(left, histogram_of(all, std::min(3, other_scale))));
  }
}

TEST(merge_with_empty_changes_nothing_and_with_itself_doubles) {
  ExpHistogram histogram = histogram_of(many_values(100, 6), 3);
  const ExpHistogram before = histogram;
  histogram.merge(ExpHistogram(3));
  CHECK(histogram == before);
  ExpHistogram empty(3);
  empty.merge(before);
  CHECK(empty == before);
  histogram.merge(histogram);
  CHECK_EQ(histogram.count(), 2 * before.count());
  CHECK_EQ(histogram.positive().counts[0], 2 * before.positive().counts[0]);
}

// The estimate and the value of that rank lie in the same bucket, and order is kept.
TEST(quantile_lies_in_the_bucket_of_the_true_one) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> latency(13.0, 1.5);
  std::vector<double> values;
  for (int i = 0; i < 999; ++i) values.push_back(i % 4 == 0 ? -latency(random) : latency(random));
  for (int i = 0; i < 50; ++i) values.push_back(0.0);
  std::sort(values.begin(), values.end());
  for (const int scale : {-1, 0, 3, 8}) {
    const ExpHistogram histogram = histogram_of(values, scale);
    double last = -kInfinity;
    for (int i = 0; i <= 1000; ++i) {
      const double q = i / 1000.0;
      const double rank = std::ceil(q * static_cast<double>(values.size()));
      const double exact = values[rank < 1 ? 0 : static_cast<size_t>(rank) - 1];
      const double estimate = histogram.quantile(q);
      CHECK(estimate >= last);
      last = estimate;
      if (exact == 0) {
        CHECK_EQ(estimate, 0.0);
      } else {
        CHECK_EQ(std::signbit(estimate), std::signbit(exact));
        CHECK_EQ(bucket_index(std::abs(estimate), scale), bucket_index(std::abs(exact), scale));
      }
    }
    CHECK_EQ(histogram.quantile(0), values.front());
    CHECK_EQ(histogram.quantile(1), values.back());
  }
}

TEST(quantile_of_few_and_of_extreme_values) {
  CHECK(std::isnan(ExpHistogram().quantile(0.5)));
  ExpHistogram one;
  one.record(1234.5);
  for (const double q : {0.0, 0.5, 0.99, 1.0}) CHECK_EQ(one.quantile(q), 1234.5);
  ExpHistogram extremes;
  extremes.record(kSmallest, 3);
  extremes.record(kLargest, 3);
  CHECK(extremes.quantile(0.4) == kSmallest);
  CHECK(std::isfinite(extremes.quantile(0.9)) && extremes.quantile(0.9) > 1e307);
}

TEST(arguments_out_of_range_are_refused) {
  int refused = 0;
  const auto expect = [&refused](auto call) {
    try {
      call();
    } catch (const std::invalid_argument&) {
      ++refused;
    }
  };
  expect([] { ExpHistogram histogram(9); });
  expect([] { ExpHistogram histogram(-11); });
  expect([] { ExpHistogram(3).downscale(4); });
  expect([] { ExpHistogram(3).quantile(1.5); });
  expect([] { ExpHistogram(3).quantile(std::nan("")); });
  CHECK_EQ(refused, 5);
}
