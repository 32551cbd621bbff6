// The observations of the steps that are held, packed: the counts of the buckets take a byte or two
// each. Written by the collector, read by snapshots, both under the recorder's mutex; what is in it
// is immutable and shared with snapshots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "core/observation.h"

namespace pertoken {

class StoredObservation {
 public:
  // `step` is that of the observation, widened, kNoStep outside steps. Throws std::bad_alloc.
  StoredObservation(int64_t id, int64_t step, const Observation& observation);

  struct Bucket {
    int sign;  // 1 or -1
    int32_t index;
    uint64_t count;
  };
  // The filled ones: those of positive values first, by ascending index.
  std::vector<Bucket> buckets() const;
  uint32_t filled_buckets() const noexcept { return filled_; }
  size_t bytes() const noexcept { return sizeof(StoredObservation) + packed_.size(); }

  int64_t id;
  int64_t step;
  int32_t row;
  uint32_t site;
  FloatFormat format;
  int scale;
  double weight;
  uint64_t count, zeros, nans, pos_infs, neg_infs;
  double min, max, sum, sum_sq;

 private:
  uint32_t filled_ = 0;
  std::vector<uint8_t> packed_;  // both sides, as of packed_buckets.h
};

class ObservationStore {
 public:
  // Returns the bytes it takes. `newest_step` is the highest that is known: an observation outside
  // steps is as old as that. Throws std::bad_alloc.
  size_t add(int64_t step, int64_t newest_step, const Observation& observation);
  // Lets those go that came before this step, and returns the bytes they took.
  size_t evict_below(int64_t first_step);
  // Lets the oldest go, and returns the bytes it took; 0 when there is none.
  size_t evict_oldest();

  std::vector<std::shared_ptr<const StoredObservation>> snapshot() const;
  uint64_t evicted() const noexcept { return evicted_; }

 private:
  struct Held {
    int64_t age_step;
    std::shared_ptr<const StoredObservation> observation;
  };

  std::deque<Held> held_;  // oldest first
  int64_t next_id_ = 0;
  uint64_t evicted_ = 0;
};

}  // namespace pertoken
