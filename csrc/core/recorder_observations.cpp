// How observations reach the store and the aggregates.
#include <array>
#include <numeric>
#include <vector>

#include "core/recorder.h"

namespace pertoken {

// One that cannot be stored is lost and counted; the others are not.
void Recorder::collect_observations() {
  const std::vector<Observation> taken = observations_.take();
  if (taken.empty()) return;
  const int64_t start_cpu_ns = detail::read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
  std::array<uint64_t, kStepKinds> of_kind{};
  for (const Observation& observation : taken) {
    if (observation.kind < kStepKinds) ++of_kind[observation.kind];
    const int64_t step =
        observation.step == kNone32 ? kNoStep : widen(last_step_, observation.step);
    try {
      aggregates_.add_values(observation.site, observation.kind, observation.weight,
                             observation.values);
      store_.add_observation(step, last_step_, observation);
    } catch (...) {
      ++collector_faults_;
    }
  }
  if (sampler_ == nullptr) return;
  const int64_t cpu_ns = detail::read_clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_cpu_ns;
  const uint64_t inside = std::accumulate(of_kind.begin(), of_kind.end(), uint64_t{0});
  const double part = static_cast<double>(inside) / static_cast<double>(taken.size());
  sampler_->see_drained(of_kind, part * static_cast<double>(cpu_ns));
}

}  // namespace pertoken
