// The exponential histogram that OpenTelemetry and Prometheus share: with base = 2^(2^-scale),
// bucket i holds the values in (base^i, base^(i+1)], upper bound included. (Prometheus calls the
// same bucket i + 1.) This is the scalar truth that faster code is checked against. The collector
// records into it on the drain thread; not thread safe.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/exp_boundaries.h"

namespace pertoken {

inline constexpr int kMinHistogramScale = -10;
inline constexpr int kMaxHistogramScale = kBoundaryScale;
inline constexpr int kDefaultHistogramScale = 3;  // buckets 9 % wide

// The bucket of a finite value > 0; exact for every double and every scale in range. Neither is
// checked.
inline int32_t bucket_index(double value, int scale) noexcept {
  return finest_bucket_index(value) >> (kMaxHistogramScale - scale);
}

// The largest double that belongs to the bucket or to one below it: base^(index+1) rounded down,
// and exact where that is a power of two. Infinity past the largest double, 0 below the smallest.
double bucket_upper_bound(int32_t index, int scale) noexcept;

// Counts of consecutive buckets; those outside are zero.
struct Buckets {
  int32_t offset = 0;  // the index of counts[0]
  std::vector<uint64_t> counts;

  void add(int32_t index, uint64_t n) {
    const uint64_t slot = static_cast<uint64_t>(int64_t{index} - offset);
    if (slot < counts.size()) [[likely]] {
      counts[slot] += n;
    } else {
      grow_and_add(index, n);
    }
  }
  void merge(const Buckets& other);
  void downscale(int steps);

  bool operator==(const Buckets&) const = default;

 private:
  void grow_and_add(int32_t index, uint64_t n);
};

// What a histogram consists of, for those who count elsewhere and for exchange.
struct HistogramParts {
  int scale = kDefaultHistogramScale;
  Buckets positive{};
  Buckets negative{};
  uint64_t zeros = 0;
  uint64_t nans = 0;
  uint64_t pos_infs = 0;
  uint64_t neg_infs = 0;
  // Each NaN when it is unknown.
  double sum = 0;
  double sum_sq = 0;
  double min = std::numeric_limits<double>::quiet_NaN();
  double max = std::numeric_limits<double>::quiet_NaN();
};

class ExpHistogram {
 public:
  // Throws std::invalid_argument for a scale out of range.
  explicit ExpHistogram(int scale = kDefaultHistogramScale);

  // Empty buckets at the ends are cut off. The moments are taken as they are; those of no values
  // are not read. Throws std::invalid_argument for a scale out of range and for a filled bucket
  // that no finite double is in, std::overflow_error for counts that do not add up in 64 bits.
  explicit ExpHistogram(HistogramParts&& parts);

  // Counts a value n times.
  void record(double value, uint64_t n = 1);

  // A duration; the same as record() of it as a double, which is exact up to 2^53 ns (104 days).
  void record_ns(uint64_t ns) {
    if (ns == 0) {
      record(0.0);
      return;
    }
    const double value = static_cast<double>(ns);
    positive_.add(finest_bucket_index(value) >> shift_, 1);
    ++count_;
    sum_ += value;
    sum_sq_ += value * value;
    if (value < min_) min_ = value;
    if (value > max_) max_ = value;
  }

  // Adds what the other counted. Of two scales the lower one results. A moment that one of two
  // filled histograms does not know is unknown afterwards. Throws std::overflow_error, and changes
  // nothing, where the values would not be counted in 64 bits any longer.
  void merge(const ExpHistogram& other);

  // Makes buckets 2^(scale - new_scale) times as wide, as if recorded so; throws
  // std::invalid_argument if new_scale is out of range or above the present one.
  void downscale(int new_scale);

  // An estimate of the value that ranks ceil(q * count) among the finite ones: of the same bucket
  // as the true one, hence at most a factor of base away from it, and within [min, max]; the first
  // and the last are min and max themselves, where these are known. NaN when
  // there are none; throws std::invalid_argument unless 0 <= q <= 1.
  double quantile(double q) const;

  int scale() const noexcept { return kMaxHistogramScale - shift_; }
  const Buckets& positive() const noexcept { return positive_; }
  const Buckets& negative() const noexcept { return negative_; }  // by absolute value
  // Finite values, zeros included: what the buckets and zero_count add up to, and what the four
  // moments are of. NaNs and infinities count only in their own counters.
  uint64_t count() const noexcept { return count_; }
  uint64_t zero_count() const noexcept { return zeros_; }
  uint64_t nan_count() const noexcept { return nans_; }
  uint64_t pos_inf_count() const noexcept { return pos_infs_; }
  uint64_t neg_inf_count() const noexcept { return neg_infs_; }
  double sum() const noexcept { return sum_; }
  double sum_sq() const noexcept { return sum_sq_; }
  // NaN when count() is 0, or when they are unknown.
  double min() const noexcept { return count_ == 0 ? kNan : min_; }
  double max() const noexcept { return count_ == 0 ? kNan : max_; }

  // Equal in every count and moment; what is unknown equals what is unknown.
  bool operator==(const ExpHistogram& other) const noexcept;

 private:
  static constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

  void add_same_scale(const ExpHistogram& other);
  double inside(const Buckets& buckets, size_t slot, double share) const;
  double within_range(double value) const;

  int shift_;  // from the finest scale
  Buckets positive_;
  Buckets negative_;
  uint64_t count_ = 0;
  uint64_t zeros_ = 0;
  uint64_t nans_ = 0;
  uint64_t pos_infs_ = 0;
  uint64_t neg_infs_ = 0;
  double sum_ = 0;
  double sum_sq_ = 0;
  double min_ = std::numeric_limits<double>::infinity();
  double max_ = -std::numeric_limits<double>::infinity();
};

}  // namespace pertoken
