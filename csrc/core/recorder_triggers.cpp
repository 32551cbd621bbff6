// How a recorder is told of what shall wake a waiting thread, and wakes it. All cold.
#include <utility>

#include "core/recorder.h"

namespace pertoken {

uint64_t Recorder::arm_triggers(const StepTriggers::Times& fixed_ns,
                                std::vector<LearnedTime> learned, WatchedValues values) {
  const std::lock_guard lock(mutex_);
  collector_.triggers().arm(fixed_ns, std::move(learned), values);
  collector_.set_rate(1e9 / clock_map_locked().ticks_per_second());
  return collector_.triggers().times_armed();
}

void Recorder::disarm_triggers() {
  const std::lock_guard lock(mutex_);
  if (!in_forked_child_) drain_locked();  // the last step may have been the slow one
  collector_.triggers().disarm();
  trigger_wake_.notify_all();
}

void Recorder::fire_trigger(int signal) {
  if (in_forked_child_) return;
  const std::lock_guard lock(mutex_);
  collector_.see_signal(signal);
  trigger_wake_.notify_all();
}

std::optional<FiredTriggers> Recorder::wait_for_trigger(std::chrono::duration<double> timeout,
                                                        uint64_t armed) {
  std::unique_lock lock(mutex_);
  StepTriggers& triggers = collector_.triggers();
  if (!triggers.has_fired()) collector_.let_go();
  trigger_wake_.wait_for(lock, timeout, [&] {
    return triggers.has_fired() || !triggers.is_armed() || triggers.times_armed() != armed;
  });
  return triggers.take();
}

}  // namespace pertoken
