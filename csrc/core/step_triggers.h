// Which steps are slow enough to be told of at once, and which observations bad enough. Fed by the
// collector and read by the thread that dumps, both under the recorder's mutex; the model's threads
// know nothing of it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/aggregates.h"
#include "core/nonfinite_watch.h"
#include "core/observation.h"
#include "core/record.h"

namespace pertoken {

// Fires for a step that takes `factor` times as long as this quantile of the steps of its kind.
struct LearnedTime {
  StepKind kind;
  double quantile;
  double factor;
  uint64_t min_steps;  // that must have ended before
};

// Which values fire where they are observed.
struct WatchedValues {
  bool nans = false;
  bool infinities = false;
};

enum class TriggerCause : uint8_t { kStepTime, kSlowStep, kNonFinite, kSignal };

struct FiredTrigger {
  TriggerCause cause;
  int64_t step = kNoStep;
  StepKind kind = StepKind::kOther;  // of the step, where there is one
  uint64_t wall_ns = 0;
  uint64_t over_ns = 0;  // the time that it passed
  uint32_t site = 0;
  int32_t row = kAllRows;
  uint64_t nans = 0;
  uint64_t infinities = 0;
  int signal = 0;
};

// What fired since it was last taken, for one dump.
struct FiredTriggers {
  FiredTrigger first;
  uint64_t others = 0;
};

class StepTriggers {
 public:
  using Times = std::array<uint64_t, kStepKinds>;  // by kind, 0: none

  // What has fired before and was not taken yet stays.
  void arm(const Times& fixed_ns, std::vector<LearnedTime> learned, WatchedValues values);
  uint64_t times_armed() const noexcept { return times_armed_; }
  void disarm() noexcept { is_armed_ = false; }
  bool is_armed() const noexcept { return is_armed_; }
  // What was learned so far, and the present rate of the ticks; now and then.
  void learn(const Aggregates& totals, double ns_per_tick);

  void see_step(int64_t step, StepKind kind, uint64_t wall_ticks) {
    if (wall_ticks > over_ticks_[static_cast<size_t>(kind)]) [[unlikely]]
      step_is_slow(step, kind, wall_ticks);
  }
  // Throws std::bad_alloc. `step` is that of the observation, widened.
  void see_values(int64_t step, const Observation& observation) {
    if (is_armed_ && (values_.nans || values_.infinities)) watch_values(step, observation);
  }
  void see_signal(int number);
  bool has_fired() const noexcept { return fired_.has_value(); }
  std::optional<FiredTriggers> take() noexcept;

 private:
  void fire(const FiredTrigger& trigger) noexcept;
  void step_is_slow(int64_t step, StepKind kind, uint64_t wall_ticks);
  void watch_values(int64_t step, const Observation& observation);

  bool is_armed_ = false;
  uint64_t times_armed_ = 0;
  Times fixed_ns_{};
  Times learned_ns_{};
  Times over_ticks_ = no_times();
  std::vector<LearnedTime> learned_;
  WatchedValues values_;
  NonfiniteWatch nonfinite_;
  double ns_per_tick_ = 1.0;
  std::optional<FiredTriggers> fired_;

  static constexpr Times no_times() {
    Times times{};
    times.fill(UINT64_MAX);
    return times;
  }
};

}  // namespace pertoken
