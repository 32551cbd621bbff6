// What detail really adds to a step, as a ratio to what the model of costs says: from pairs of
// neighbouring steps of one kind on one thread, of which one got detail and the other did not. The
// median leaves outliers out. Each pair weighs as much as its outcome was improbable: a step that
// took long leaves more to spend, so that the next one is more likely to get detail, and an
// unweighted difference would hold that. Used by the collector only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace pertoken {

struct PairedInterval {
  double median;
  double low;
  double high;
};

class PairedCost {
 public:
  static constexpr size_t kKept = 255;
  static constexpr size_t kFewest = 12;  // below, the ranks would not bound 95 %

  // `probability` of the outcome: of the detail of the one, and of no detail of the other.
  void add(double ratio, double probability) {
    kept_[pairs_ % kKept] = {ratio, 1 / probability};
    ++pairs_;
  }

  uint64_t pairs() const { return pairs_; }
  bool is_known() const { return pairs_ >= kFewest; }

  // The weighted median of the last pairs, and the ranks round it that hold the true one in 95 % of
  // cases (binomial, by its normal approximation, for as many pairs as the weights amount to). Only
  // where is_known().
  PairedInterval interval() const {
    std::array<std::pair<double, double>, kKept> sorted = kept_;
    const size_t count = std::min<size_t>(pairs_, kKept);
    std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count));
    double sum = 0;
    double squares = 0;
    for (size_t i = 0; i < count; ++i) {
      sum += sorted[i].second;
      squares += sorted[i].second * sorted[i].second;
    }
    const double spread = 0.98 / std::sqrt(sum * sum / squares);  // 1.96 standard deviations
    const auto at = [&](double share) {
      double reached = 0;
      for (size_t i = 0; i < count; ++i) {
        reached += sorted[i].second;
        if (reached >= share * sum) return sorted[i].first;
      }
      return sorted[count - 1].first;
    };
    return {at(0.5), at(0.5 - spread), at(0.5 + spread)};
  }

 private:
  std::array<std::pair<double, double>, kKept> kept_{};  // ratio and weight
  uint64_t pairs_ = 0;
};

}  // namespace pertoken
