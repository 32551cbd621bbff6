// Observations as a module's outputs would give them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <utility>

#include "core/exp_histogram.h"
#include "core/observation.h"
#include "core/record.h"

namespace pertoken::testing {

inline Observation observation_of(uint32_t step, ExpHistogram values = ExpHistogram(),
                                  uint32_t site = 3) {
  return {step,
          static_cast<uint8_t>(StepKind::kDecode),
          kAllRows,
          site,
          FloatFormat::kFloat32,
          16,
          std::move(values)};
}

// Of any scale, with zeros, NaN and an infinity.
inline ExpHistogram random_values(std::mt19937_64& random) {
  ExpHistogram values(static_cast<int>(random() % 19) - 10);
  for (uint64_t i = random() % 50; i > 0; --i) {
    const double size = std::ldexp(1 + static_cast<double>(random() % 1000) / 1000,
                                   static_cast<int>(random() % 2098) - 1074);
    values.record(random() % 2 == 0 ? size : -size, uint64_t{1} << random() % 50);
  }
  values.record(0.0, random() % 3);
  values.record(std::nan(""), random() % 3);
  values.record(-std::numeric_limits<double>::infinity(), random() % 3);
  return values;
}

}  // namespace pertoken::testing
