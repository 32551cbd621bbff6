// Which steps fire: fixed and learned times, by kind, and what the waiting thread is told.
#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "core/recorder.h"
#include "core/step_triggers.h"

namespace pertoken {
namespace {

StepTriggers::Times only(StepKind kind, uint64_t over_ns) {
  StepTriggers::Times times{};
  times[static_cast<size_t>(kind)] = over_ns;
  return times;
}

FiredTrigger only_one(const std::optional<FiredTriggers>& fired) {
  CHECK(fired.has_value());
  CHECK_EQ(fired->others, uint64_t{0});
  return fired->first;
}

TEST(a_step_over_the_fixed_time_of_its_kind_fires) {
  const Aggregates totals;
  StepTriggers triggers;
  triggers.see_step(1, StepKind::kDecode, UINT64_MAX - 1);
  CHECK(!triggers.has_fired());  // nothing is armed
  triggers.arm(only(StepKind::kDecode, 1000), {}, {});
  triggers.learn(totals, 0.5);
  triggers.see_step(2, StepKind::kDecode, 2000);
  triggers.see_step(3, StepKind::kPrefill, 5000);
  CHECK(!triggers.has_fired());
  triggers.see_step(4, StepKind::kDecode, 2002);
  const FiredTrigger fired = only_one(triggers.take());
  CHECK(fired.cause == TriggerCause::kStepTime && fired.kind == StepKind::kDecode);
  CHECK_EQ(fired.step, int64_t{4});
  CHECK_EQ(fired.wall_ns, uint64_t{1001});
  CHECK_EQ(fired.over_ns, uint64_t{1000});
  CHECK(!triggers.has_fired());
}

TEST(a_time_is_learned_once_enough_steps_have_ended) {
  Aggregates totals;
  StepTriggers triggers;
  triggers.arm({}, {{StepKind::kDecode, 0.99, 3.0, 100}}, {});
  for (int i = 0; i < 99; ++i) totals.steps(StepKind::kDecode).wall_ns.record_ns(1000);
  triggers.learn(totals, 1.0);
  triggers.see_step(1, StepKind::kDecode, 1'000'000);
  CHECK(!triggers.has_fired());
  totals.steps(StepKind::kDecode).wall_ns.record_ns(1000);
  triggers.learn(totals, 1.0);
  triggers.see_step(2, StepKind::kDecode, 2700);
  CHECK(!triggers.has_fired());
  triggers.see_step(3, StepKind::kDecode, 3300);
  const FiredTrigger fired = only_one(triggers.take());
  CHECK(fired.cause == TriggerCause::kSlowStep && fired.step == 3);
  CHECK(fired.over_ns > 2700 && fired.over_ns < 3300);
}

// An observation of two values, the second as given.
Observation observed(uint32_t site, double value, int32_t row = kAllRows) {
  Observation observation{3,
                          static_cast<uint8_t>(StepKind::kDecode),
                          row,
                          site,
                          FloatFormat::kFloat32,
                          1.0,
                          ExpHistogram()};
  observation.values.record(1.0);
  observation.values.record(value);
  return observation;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(a_site_fires_when_its_values_begin_to_be_bad) {
  StepTriggers triggers;
  triggers.see_values(1, observed(7, kNan));
  CHECK(!triggers.has_fired());  // nothing is armed
  triggers.arm({}, {}, {.nans = true});
  triggers.see_values(1, observed(7, 2.0));
  triggers.see_values(2, observed(7, kInfinity));
  CHECK(!triggers.has_fired());  // infinities are not watched
  triggers.see_values(3, observed(7, kNan, 4));
  const FiredTrigger fired = only_one(triggers.take());
  CHECK(fired.cause == TriggerCause::kNonFinite && fired.kind == StepKind::kDecode);
  CHECK(fired.step == 3 && fired.site == 7 && fired.row == 4);
  CHECK(fired.nans == 1 && fired.infinities == 0);
  triggers.see_values(3, observed(7, 2.0, 5));
  triggers.see_values(4, observed(7, 2.0, 4));
  triggers.see_values(4, observed(7, kNan, 5));
  CHECK(!triggers.has_fired());  // one row or another was bad all the time
  triggers.see_values(5, observed(8, kNan));
  CHECK_EQ(only_one(triggers.take()).site, 8U);  // each site by itself
  triggers.see_values(5, observed(7, 2.0));
  triggers.see_values(6, observed(7, kNan));
  CHECK_EQ(only_one(triggers.take()).site, 7U);  // it was good meanwhile
}

TEST(outside_of_steps_each_observation_counts) {
  StepTriggers triggers;
  triggers.arm({}, {}, {.nans = true, .infinities = true});
  std::vector<uint64_t> infinities;
  for (const double value : {-kInfinity, kNan, 1.0, kNan, kNan, 1.0, 1.0, kInfinity}) {
    triggers.see_values(kNoStep, observed(7, value));
    if (!triggers.has_fired()) continue;
    const FiredTrigger fired = only_one(triggers.take());
    infinities.push_back(fired.infinities);
    CHECK_EQ(fired.nans, 1 - fired.infinities);
  }
  CHECK(infinities == std::vector<uint64_t>({1, 0, 1}));
}

TEST(an_observation_wakes_the_thread_that_waits) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 8});
  recorder->start();
  const uint64_t armed = recorder->arm_triggers({}, {}, {.nans = true});
  recorder->observations().push(observed(7, kNan));
  const FiredTrigger fired = only_one(recorder->wait_for_trigger(std::chrono::seconds(60), armed));
  CHECK(fired.step == 3 && fired.site == 7);
  recorder->disarm_triggers();
  recorder->stop();
}

TEST(what_fires_while_nobody_waits_is_counted) {
  const Aggregates totals;
  StepTriggers triggers;
  triggers.arm(only(StepKind::kOther, 1), {}, {});
  triggers.learn(totals, 1.0);
  for (int64_t step = 0; step < 100'000; ++step) triggers.see_step(step, StepKind::kOther, 10);
  triggers.see_signal(12);
  const std::optional<FiredTriggers> fired = triggers.take();
  CHECK(fired.has_value());
  CHECK_EQ(fired->first.step, int64_t{0});
  CHECK_EQ(fired->others, uint64_t{100'000});
  triggers.disarm();
  triggers.see_step(1, StepKind::kOther, 10);
  triggers.see_signal(12);
  CHECK(!triggers.has_fired());
}

TEST(the_collector_wakes_the_thread_that_waits) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 8});
  CHECK(!recorder->wait_for_trigger(std::chrono::seconds(0), 0));
  recorder->start();
  const uint64_t armed = recorder->arm_triggers(only(StepKind::kOther, 1000), {}, {});
  std::optional<FiredTriggers> fired;
  std::thread waiting([&] { fired = recorder->wait_for_trigger(std::chrono::seconds(60), armed); });
  ThreadBuffer& buffer = *recorder->buffer();
  const uint32_t step = recorder->next_step();
  const auto kind = static_cast<uint32_t>(StepKind::kOther);
  const uint64_t now = now_ticks();
  buffer.push({now, 0, make_tag(RecordType::kStepBegin, kind), kNone32, kNone32, step});
  buffer.push({now + 1'000'000, 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
  waiting.join();
  CHECK_EQ(only_one(fired).step, int64_t{step});
  std::thread until_disarmed(
      [&] { fired = recorder->wait_for_trigger(std::chrono::seconds(60), armed); });
  recorder->disarm_triggers();
  until_disarmed.join();
  CHECK(!fired.has_value());
  recorder->stop();
}

TEST(what_has_fired_before_a_new_start_is_taken_by_whoever_waits) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 8});
  const uint64_t before = recorder->arm_triggers({}, {}, {});
  recorder->fire_trigger(12);
  recorder->disarm_triggers();
  const uint64_t armed = recorder->arm_triggers({}, {}, {});
  CHECK(armed != before);
  CHECK_EQ(only_one(recorder->wait_for_trigger(std::chrono::seconds(60), armed)).signal, 12);
  // One that missed the end of the time before waits no longer.
  CHECK(!recorder->wait_for_trigger(std::chrono::seconds(60), before));
  recorder->disarm_triggers();
}

TEST(what_led_to_a_trigger_is_held_until_it_was_dumped) {
  const auto recorder = Recorder::create(
      {.store_limit_bytes = size_t{1} << 20, .ring_capacity = 1 << 8, .keep_ns = 1'000'000});
  const uint64_t armed = recorder->arm_triggers(only(StepKind::kOther, 500'000'000), {}, {});
  const auto kind = static_cast<uint32_t>(StepKind::kOther);
  uint64_t now = now_ticks();
  const auto run_step = [&](double seconds) {
    const uint32_t step = recorder->next_step();
    recorder->buffer()->push({now, 0, make_tag(RecordType::kStepBegin, kind), kNone32, 0, step});
    now += static_cast<uint64_t>(seconds * 1e10);  // ticks, of which no machine has more a second
    recorder->buffer()->push({now, 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
    recorder->drain();
    return int64_t{step};
  };
  const int64_t slow = run_step(1.0);
  for (int i = 0; i < 5; ++i) run_step(0.01);
  CHECK_EQ(only_one(recorder->wait_for_trigger(std::chrono::seconds(0), armed)).step, slow);
  CHECK_EQ(recorder->snapshot().store.first_step, slow);
  CHECK(!recorder->wait_for_trigger(std::chrono::seconds(0), armed));
  run_step(0.01);
  CHECK(recorder->snapshot().store.first_step > slow);
}

}  // namespace
}  // namespace pertoken
