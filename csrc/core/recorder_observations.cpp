// How observations reach the store and the aggregates.
#include "core/recorder.h"

namespace pertoken {

// One that cannot be stored is lost and counted; the others are not.
void Recorder::collect_observations() {
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
}

}  // namespace pertoken
