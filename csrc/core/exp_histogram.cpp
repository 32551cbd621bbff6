#include "core/exp_histogram.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace pertoken {
namespace {

int checked_shift(int scale) {
  if (scale < kMinHistogramScale || scale > kMaxHistogramScale) {
    throw std::invalid_argument("a histogram's scale must be from -10 to 8");
  }
  return kMaxHistogramScale - scale;
}

// Adds to a sum of counts; throws where it overflows.
void add_checked(uint64_t& sum, uint64_t n) {
  if (n > std::numeric_limits<uint64_t>::max() - sum) {
    throw std::overflow_error("the counts of a histogram do not add up in 64 bits");
  }
  sum += n;
}

// Cut to the filled buckets, of which there must be none that no finite double is in: so the memory
// of a histogram is bounded, whatever it is merged with.
Buckets trimmed(Buckets&& buckets, int scale) {
  const auto filled = [](uint64_t n) { return n != 0; };
  auto& counts = buckets.counts;
  const auto begin = std::find_if(counts.begin(), counts.end(), filled);
  if (begin == counts.end()) return {};
  const auto end = std::find_if(counts.rbegin(), counts.rend(), filled).base();
  const int64_t first = buckets.offset + (begin - counts.begin());
  const int64_t last = buckets.offset + (end - counts.begin()) - 1;
  if (first < bucket_index(std::numeric_limits<double>::denorm_min(), scale) ||
      last > bucket_index(std::numeric_limits<double>::max(), scale)) {
    throw std::invalid_argument("a bucket is outside the range of finite doubles");
  }
  if (begin == counts.begin() && end == counts.end()) return std::move(buckets);
  return {static_cast<int32_t>(first), std::vector<uint64_t>(begin, end)};
}

bool is_same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Unlike std::min and std::max: NaN if one of them is.
double min_known(double a, double b) { return b < a || std::isnan(b) ? b : a; }
double max_known(double a, double b) { return b > a || std::isnan(b) ? b : a; }

}  // namespace

double bucket_upper_bound(int32_t index, int scale) noexcept {
  const int64_t finest = (int64_t{index} + 1) * (int64_t{1} << (kMaxHistogramScale - scale));
  const int64_t exponent = finest >> kBoundaryScale;
  const auto j = static_cast<size_t>(finest & (kBucketsPerOctave - 1));
  if (exponent > 1023) return std::numeric_limits<double>::infinity();
  if (exponent >= -1022) {
    const uint64_t biased = static_cast<uint64_t>(exponent + 1023);
    return std::bit_cast<double>(biased << kMantissaBits | kOctave.boundary[j]);
  }
  const int64_t lost_bits = -1022 - exponent;
  if (lost_bits > kMantissaBits) return 0.0;
  const uint64_t mantissa = kOctave.boundary[j] | uint64_t{1} << kMantissaBits;
  return std::bit_cast<double>(mantissa >> lost_bits);
}

void Buckets::grow_and_add(int32_t index, uint64_t n) {
  if (counts.empty()) {
    offset = index;
    counts.push_back(n);
    return;
  }
  if (index < offset) {
    counts.insert(counts.begin(), static_cast<size_t>(int64_t{offset} - index), 0);
    offset = index;
  } else {
    counts.resize(static_cast<size_t>(int64_t{index} - offset) + 1, 0);
  }
  counts[static_cast<size_t>(int64_t{index} - offset)] += n;
}

void Buckets::merge(const Buckets& other) {
  if (other.counts.empty()) return;
  const auto last =
      static_cast<int32_t>(other.offset + static_cast<int64_t>(other.counts.size()) - 1);
  // Grown at both ends at once, so that nothing moves below.
  add(other.offset, 0);
  add(last, 0);
  const size_t at = static_cast<size_t>(int64_t{other.offset} - offset);
  for (size_t i = 0; i < other.counts.size(); ++i) counts[at + i] += other.counts[i];
}

void Buckets::downscale(int steps) {
  Buckets wider;
  for (size_t i = 0; i < counts.size(); ++i) {
    const auto index = static_cast<int32_t>(offset + static_cast<int64_t>(i));
    wider.add(index >> steps, counts[i]);
  }
  *this = std::move(wider);
}

ExpHistogram::ExpHistogram(int scale) : shift_(checked_shift(scale)) {}

ExpHistogram::ExpHistogram(HistogramParts&& parts)
    : shift_(checked_shift(parts.scale)),
      positive_(trimmed(std::move(parts.positive), parts.scale)),
      negative_(trimmed(std::move(parts.negative), parts.scale)),
      zeros_(parts.zeros),
      nans_(parts.nans),
      pos_infs_(parts.pos_infs),
      neg_infs_(parts.neg_infs) {
  add_checked(count_, zeros_);
  for (const Buckets* side : {&positive_, &negative_}) {
    for (const uint64_t n : side->counts) add_checked(count_, n);
  }
  uint64_t all = count_;
  for (const uint64_t n : {nans_, pos_infs_, neg_infs_}) add_checked(all, n);
  if (count_ == 0) return;
  sum_ = parts.sum;
  sum_sq_ = parts.sum_sq;
  min_ = parts.min;
  max_ = parts.max;
}

void ExpHistogram::record(double value, uint64_t n) {
  if (n == 0) return;
  if (std::isnan(value)) {
    nans_ += n;
    return;
  }
  if (std::isinf(value)) {
    (value > 0 ? pos_infs_ : neg_infs_) += n;
    return;
  }
  if (value == 0) {
    zeros_ += n;
    value = 0.0;  // not -0.0, which min and max would keep
  } else {
    Buckets& side = value > 0 ? positive_ : negative_;
    side.add(finest_bucket_index(std::abs(value)) >> shift_, n);
  }
  const double times = static_cast<double>(n);
  count_ += n;
  sum_ += value * times;
  sum_sq_ += value * value * times;
  min_ = std::min(min_, value);
  max_ = std::max(max_, value);
}

void ExpHistogram::merge(const ExpHistogram& other) {
  uint64_t all = 0;
  for (const ExpHistogram* one : {static_cast<const ExpHistogram*>(this), &other}) {
    for (const uint64_t n : {one->count_, one->nans_, one->pos_infs_, one->neg_infs_}) {
      add_checked(all, n);
    }
  }
  if (other.shift_ < shift_ || &other == this) {
    ExpHistogram wider = other;
    wider.downscale(scale());
    add_same_scale(wider);
    return;
  }
  downscale(other.scale());
  add_same_scale(other);
}

void ExpHistogram::add_same_scale(const ExpHistogram& other) {
  positive_.merge(other.positive_);
  negative_.merge(other.negative_);
  count_ += other.count_;
  zeros_ += other.zeros_;
  nans_ += other.nans_;
  pos_infs_ += other.pos_infs_;
  neg_infs_ += other.neg_infs_;
  sum_ += other.sum_;
  sum_sq_ += other.sum_sq_;
  min_ = min_known(min_, other.min_);
  max_ = max_known(max_, other.max_);
}

bool ExpHistogram::operator==(const ExpHistogram& other) const noexcept {
  return shift_ == other.shift_ && positive_ == other.positive_ && negative_ == other.negative_ &&
         count_ == other.count_ && zeros_ == other.zeros_ && nans_ == other.nans_ &&
         pos_infs_ == other.pos_infs_ && neg_infs_ == other.neg_infs_ &&
         is_same(sum_, other.sum_) && is_same(sum_sq_, other.sum_sq_) &&
         is_same(min_, other.min_) && is_same(max_, other.max_);
}

void ExpHistogram::downscale(int new_scale) {
  const int shift = checked_shift(new_scale);
  if (shift < shift_) throw std::invalid_argument("a histogram cannot be made finer");
  if (shift == shift_) return;
  positive_.downscale(shift - shift_);
  negative_.downscale(shift - shift_);
  shift_ = shift;
}

double ExpHistogram::quantile(double q) const {
  if (!(q >= 0 && q <= 1)) throw std::invalid_argument("a quantile must be from 0 to 1");
  if (count_ == 0) return kNan;
  const double wanted = std::ceil(q * static_cast<double>(count_));
  // The first and the last are known themselves.
  if (wanted <= 1 && !std::isnan(min_)) return min_;
  if (wanted >= static_cast<double>(count_) && !std::isnan(max_)) return max_;
  uint64_t rank = wanted <= 1                             ? 1
                  : wanted >= static_cast<double>(count_) ? count_
                                                          : static_cast<uint64_t>(wanted);
  // The middle of the place of the rank-th of n, as a share of their bucket.
  const auto share = [&](uint64_t n) {
    return (static_cast<double>(rank) - 0.5) / static_cast<double>(n);
  };
  for (size_t i = negative_.counts.size(); i-- > 0;) {
    const uint64_t n = negative_.counts[i];
    if (rank <= n) return within_range(-inside(negative_, i, 1.0 - share(n)));
    rank -= n;
  }
  if (rank <= zeros_) return 0.0;
  rank -= zeros_;
  for (size_t i = 0; i < positive_.counts.size(); ++i) {
    const uint64_t n = positive_.counts[i];
    if (rank <= n) return within_range(inside(positive_, i, share(n)));
    rank -= n;
  }
  return max_;
}

double ExpHistogram::within_range(double value) const {
  if (value < min_) return min_;
  return value > max_ ? max_ : value;
}

// The share is of the bucket's logarithm. Held inside the bucket against rounding at its ends.
double ExpHistogram::inside(const Buckets& buckets, size_t slot, double share) const {
  const auto index = static_cast<int32_t>(buckets.offset + static_cast<int64_t>(slot));
  const double value = std::exp2(std::ldexp(index + share, -scale()));
  const double lowest = std::nextafter(bucket_upper_bound(index - 1, scale()),
                                       std::numeric_limits<double>::infinity());
  const double highest =
      std::min(bucket_upper_bound(index, scale()), std::numeric_limits<double>::max());
  return std::clamp(value, lowest, highest);
}

}  // namespace pertoken
