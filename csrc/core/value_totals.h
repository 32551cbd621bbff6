// Values that were observed in some of the steps, and what they say of all.
#pragma once

#include <cstdint>

#include "core/exp_histogram.h"

namespace pertoken {

// What a site put out in the observed steps of a kind, or what a signal of their logits was.
struct ValueTotals {
  uint32_t site = 0;  // of a signal its number
  uint8_t kind = 0;   // StepKind, or kOutsideSteps
  uint64_t observations = 0;
  // Each observation times its weight, so as if all steps had been observed: how many there would
  // be, and of their finite values the number, the sum and the sum of the squares.
  double weight = 0;
  double weighted_count = 0;
  double weighted_sum = 0;
  double weighted_sum_sq = 0;
  ExpHistogram values = ExpHistogram();

  // An observation, of so many finite values with these sums.
  void weigh(double of_one, double count, double sum, double sum_sq) noexcept {
    ++observations;
    weight += of_one;
    weighted_count += of_one * count;
    weighted_sum += of_one * sum;
    weighted_sum_sq += of_one * sum_sq;
  }
};

}  // namespace pertoken
