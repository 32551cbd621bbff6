// What detail really adds to a step, as a ratio to what the model of costs says: from pairs of
// neighbouring steps of one kind on one thread, of which one got detail and the other did not. The
// median leaves outliers out. Each pair weighs as much as its outcome was improbable: a step that
// took long leaves more to spend, so that the next one is more likely to get detail, and an
// unweighted difference would hold that. All pairs count, in buckets, so that the interval goes on
// to narrow however small the cost is beside the noise. Used by the collector only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace pertoken {

struct PairedInterval {
  double median;
  double low;
  double high;
  double error;  // standard, of the median
};

class PairedCost {
 public:
  // `probability` of the outcome: of the detail of the one, and of no detail of the other.
  void add(double ratio, double probability) {
    const double weight = 1 / probability;
    if (pairs_ == 0) unit_ = std::min(weight, kMostUnit);
    weights_[bucket_of(ratio)] += weight;
    sum_ += weight;
    squares_ += weight * weight;
    ++pairs_;
  }

  uint64_t pairs() const { return pairs_; }
  // Whether there is an interval at all: from 13 pairs of one weight on, or 15 of a large one.
  bool is_known() const { return pairs_ > 0 && spread() < 0.5; }

  // The weighted median, and an interval that holds the true one at all looks at once with 95 %: by
  // a time-uniform bound, a normal mixture, on how far half of the weight can be from the share of
  // it below the true median (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
  // nonparametric, nonasymptotic confidence sequences", 2021). Exact for pairs that do not depend
  // on each other, nor what they show on their weights, whatever these are. Only where is_known().
  PairedInterval interval() const {
    const double around = spread();
    const double deviation = 0.5 / std::sqrt(sum_ * sum_ / squares_);
    const double above = high_edge(bucket_at(0.5 + deviation));
    const double below = low_edge(bucket_at(0.5 - deviation));
    return {middle_of(bucket_at(0.5)), low_edge(bucket_at(0.5 - around)),
            high_edge(bucket_at(0.5 + around)), (above - below) / 2};
  }

 private:
  static constexpr size_t kPerOctave = 8;  // of the absolute ratio: bounds are out by 9 % at most
  static constexpr double kSmallest = 1.0 / 16;
  static constexpr size_t kOctaves = 16;
  static constexpr size_t kSide = kPerOctave * kOctaves;  // buckets of one sign; the rest is in
  static constexpr size_t kZero = kSide;                  // the outermost, or about zero

  static constexpr double kAlpha = 0.05;
  static constexpr double kNarrowestAt = 100;  // pairs; a little wider long before and after

  // So that a first pair of a rare outcome does not widen all that come after it.
  static constexpr double kMostUnit = 64;

  // Of the share of the weight below the true median, from one half. What is mixed is fixed by the
  // weight of the first pair: were it by those of all so far, the bound would be another one at
  // each look, and hold at all of them in 90 % only where rates fall.
  double spread() const {
    const double log = -2 * std::log(kAlpha);
    const double mixed = unit_ * unit_ * kNarrowestAt / 4 / (log + std::log(log) + 1);
    const double variance = squares_ / 4 + mixed;
    return std::sqrt(variance * (std::log(variance / mixed) + log)) / sum_;
  }

  static size_t bucket_of(double ratio) {
    const double octaves = std::log2(std::abs(ratio) / kSmallest);
    if (!(octaves >= 0)) return kZero;
    const auto at = static_cast<size_t>(std::min(octaves * kPerOctave, kSide - 1.0));
    return ratio > 0 ? kZero + 1 + at : kZero - 1 - at;
  }

  // The first bucket up to which there is this share of the weight.
  size_t bucket_at(double share) const {
    double reached = 0;
    size_t last = 0;
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0) continue;
      reached += weights_[i];
      last = i;
      if (reached >= share * sum_) break;
    }
    return last;
  }

  // The absolute ratio where the bucket number `at` of a side begins.
  static double edge(double at) { return kSmallest * std::exp2(at / kPerOctave); }
  static double at_edge(size_t bucket, double inwards, double outwards) {
    if (bucket > kZero) return edge(static_cast<double>(bucket - kZero - 1) + outwards);
    return -edge(static_cast<double>(kZero - 1 - bucket) + inwards);
  }
  static double low_edge(size_t bucket) {
    return bucket == kZero ? -kSmallest : at_edge(bucket, 1, 0);
  }
  static double high_edge(size_t bucket) {
    return bucket == kZero ? kSmallest : at_edge(bucket, 0, 1);
  }
  static double middle_of(size_t bucket) { return bucket == kZero ? 0 : at_edge(bucket, 0.5, 0.5); }

  std::array<double, 2 * kSide + 1> weights_{};
  double sum_ = 0;
  double squares_ = 0;
  double unit_ = 0;  // the first weight, or kMostUnit
  uint64_t pairs_ = 0;
};

}  // namespace pertoken
