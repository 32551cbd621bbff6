// The softmax of one row of logits as far as it was seen: what is added up is relative to the
// largest logit so far, and scaled down when a larger one comes (online softmax: Milakov and
// Gimelshein, 2018), so that one pass is enough and nothing overflows. Pure; any thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace pertoken {

// Less than that, e^x is 0 in a double, and x * e^x must be.
inline constexpr double kLowestExponent = -1000;

struct SoftmaxSums {
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  double max = kLowest;
  double second = kLowest;  // the second largest, which may equal the largest
  double exps = 0;          // the sum of e^(x - max)
  double weighted = 0;      // and of (x - max) e^(x - max)

  // The two largest of what is to be added next, before it is.
  void raise(double largest, double next) noexcept {
    second = std::max(std::min(max, largest), std::max(second, next));
    if (largest <= max) return;
    if (exps > 0) {
      const double shift = std::max(max - largest, kLowestExponent);
      const double factor = std::exp(shift);
      weighted = factor * (weighted + shift * exps);
      exps *= factor;
    }
    max = largest;
  }

  // One logit, which is neither NaN nor plus infinity.
  void add(double logit) noexcept {
    raise(logit, kLowest);
    if (logit == kLowest) return;
    const double exponent = std::max(logit - max, kLowestExponent);
    const double e = std::exp(exponent);
    exps += e;
    weighted += exponent * e;
  }

  // As if each logit had been there so often.
  void repeat(double times) noexcept {
    if (times <= 1) return;
    second = max;
    exps *= times;
    weighted *= times;
  }
};

}  // namespace pertoken
