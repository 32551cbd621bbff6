// The softmax of one row of logits as far as it was seen: what is added up is relative to the
// largest logit so far, and scaled down when a larger one comes (online softmax: Milakov and
// Gimelshein, 2018), so that one pass is enough and nothing overflows. Parts of a row that were
// added up apart merge. Shared by the processor's kernels and the GPU's. Pure; any thread.
#pragma once

#include <cmath>
#include <limits>

#include "core/float_bits.h"

namespace pertoken {

// What the logits of one position say of the token that is chosen from them. NaN throughout where a
// logit is NaN or plus infinity, or all are minus infinity, as a softmax is. A logit of minus
// infinity has the probability 0.
struct LogitStats {
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  double top1_prob = kUnknown;  // of the most probable token
  double margin = kUnknown;     // less the probability of the second; 1 where there is none
  double entropy = kUnknown;    // of the distribution, in nats
  double log_sum = kUnknown;    // log of the sum of exponentials: a logit less this is its logprob
};

// Less than that, e^x is 0 in a double, and x * e^x must be.
inline constexpr double kLowestExponent = -1000;

// Once in a kernel, which calls it in several places.
#if defined(__CUDA_ARCH__)
__device__ __noinline__ inline double exp_of_double(double x) { return ::exp(x); }
#else
inline double exp_of_double(double x) noexcept { return std::exp(x); }
#endif

struct SoftmaxSums {
  static constexpr double kLowest = -std::numeric_limits<double>::infinity();

  double max = kLowest;
  double second = kLowest;  // the second largest, which may equal the largest
  double exps = 0;          // the sum of e^(x - max); NaN once a logit was no number to go by
  double weighted = 0;      // and of (x - max) e^(x - max)

  // The two largest of what is to be added next, before it is.
  PERTOKEN_HOST_DEVICE void raise(double largest, double next) noexcept {
    const double less = largest < max ? largest : max;
    const double higher = next > second ? next : second;
    second = less > higher ? less : higher;
    if (!(largest > max)) return;
    if (exps > 0) {
      const double shift = at_least_lowest(max - largest);
      const double factor = exp_of_double(shift);
      weighted = factor * (weighted + shift * exps);
      exps *= factor;
    }
    max = largest;
  }

  // One logit, which is neither NaN nor plus infinity.
  PERTOKEN_HOST_DEVICE void add(double logit) noexcept {
    raise(logit, kLowest);
    if (logit == kLowest) return;
    const double exponent = at_least_lowest(logit - max);
    const double e = exp_of_double(exponent);
    exps += e;
    weighted += exponent * e;
  }

  // A logit was NaN or plus infinity, and nothing is known any more.
  PERTOKEN_HOST_DEVICE void spoil() noexcept { exps = LogitStats::kUnknown; }

  // Another part of the same row.
  PERTOKEN_HOST_DEVICE void merge(const SoftmaxSums& other) noexcept {
    raise(other.max, other.second);
    const double shift = other.exps > 0 ? at_least_lowest(other.max - max) : 0;
    const double factor = exp_of_double(shift);
    exps += factor * other.exps;
    weighted += factor * (other.weighted + shift * other.exps);
  }

  // As if each logit had been there so often.
  PERTOKEN_HOST_DEVICE void repeat(double times) noexcept {
    if (times <= 1) return;
    second = max;
    exps *= times;
    weighted *= times;
  }

  PERTOKEN_HOST_DEVICE LogitStats stats() const noexcept {
    if (!(exps > 0)) return {};
    const double top1_prob = 1 / exps;
    const double log_exps = std::log(exps);
    const double entropy = log_exps - weighted * top1_prob;
    return {.top1_prob = top1_prob,
            .margin = -std::expm1(second - max) * top1_prob,
            .entropy = entropy > 0 ? entropy : 0,
            .log_sum = max + log_exps};
  }

 private:
  static PERTOKEN_HOST_DEVICE double at_least_lowest(double exponent) noexcept {
    return exponent > kLowestExponent ? exponent : kLowestExponent;
  }
};

}  // namespace pertoken
