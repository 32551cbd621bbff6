// The step that a thread is in, as observing sees it. Stands in the thread's buffer while the
// forward of an observed step runs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/record.h"

namespace pertoken {

// Positions that hold values of one row: of the batch's `batch_row`, from `begin` up to before
// `end`.
struct ValidRun {
  int64_t row;
  int64_t batch_row;  // the same, but in a packed batch, whose one row holds all
  int64_t begin;
  int64_t end;
};

struct ObservedStep {
  double weight = 0;  // 0: the step is not observed
  uint8_t kind = kOutsideSteps;
  int64_t rows = -1;        // of the step, as step_rows numbers them; -1 unknown
  int64_t batch_rows = -1;  // of the tensors; -1 unknown, and positions fed for each
  int64_t positions = -1;
  const std::vector<ValidRun>* valid = nullptr;  // ascending by row; null: all positions are valid
  uint64_t ticks = 0;                            // what observing has taken in it so far
};

}  // namespace pertoken
