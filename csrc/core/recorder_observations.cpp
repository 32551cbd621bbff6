// How observations reach the store and the aggregates.
#include <algorithm>
#include <utility>

#include "core/recorder.h"

namespace pertoken {

void Recorder::set_observation_source(std::shared_ptr<ObservationSource> source) {
  const std::lock_guard lock(mutex_);
  device_observations_ = std::move(source);
}

// One that cannot be stored is lost and counted; the others are not. Returns how many records of a
// ring are as near to filling it as what devices left is to filling theirs.
size_t Recorder::collect_observations() {
  double fullness = 0;
  if (device_observations_ != nullptr && !in_forked_child_) {
    try {
      device_observations_->collect(ns_per_tick_, observations_);
    } catch (...) {
      ++collector_faults_;
    }
    fullness = device_observations_->fullness();
  }
  for (const Observation& observation : observations_.take()) {
    const int64_t step =
        observation.step == kNone32 ? kNoStep : widen(last_step_, observation.step);
    try {
      aggregates_.add_values(observation.site, observation.kind, observation.values);
      store_.add_observation(step, last_step_, observation);
    } catch (...) {
      ++collector_faults_;
    }
  }
  return static_cast<size_t>(std::min(fullness, 1.0) * static_cast<double>(options_.ring_capacity));
}

}  // namespace pertoken
