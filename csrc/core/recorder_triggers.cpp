// How a recorder is told of what shall wake a waiting thread, and wakes it. All cold.
#include <utility>

#include "core/recorder.h"

namespace pertoken {

void Recorder::arm_triggers(const StepTriggers::Times& fixed_ns, std::vector<LearnedTime> learned,
                            WatchedValues values) {
  const std::lock_guard lock(mutex_);
  ns_per_tick_ = 1e9 / clock_map_locked().ticks_per_second();
  triggers_.arm(fixed_ns, std::move(learned), values);
  triggers_.learn(aggregates_, ns_per_tick_);
}

void Recorder::disarm_triggers() {
  const std::lock_guard lock(mutex_);
  if (!in_forked_child_) drain_locked();  // the last step may have been the slow one
  triggers_.disarm();
  trigger_wake_.notify_all();
}

void Recorder::fire_trigger(int signal) {
  if (in_forked_child_) return;
  const std::lock_guard lock(mutex_);
  triggers_.see_signal(signal);
  trigger_wake_.notify_all();
}

std::vector<FiredTrigger> Recorder::wait_for_trigger(std::chrono::duration<double> timeout) {
  std::unique_lock lock(mutex_);
  trigger_wake_.wait_for(lock, timeout,
                         [this] { return triggers_.has_fired() || !triggers_.is_armed(); });
  return triggers_.take();
}

}  // namespace pertoken
