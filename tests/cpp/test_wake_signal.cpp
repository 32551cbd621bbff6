// A sleeper is woken, also by what came before it slept; and the collector's sleep ends when a ring
// or the intake of observations is half full. Where a sleep does not end, the test does not either.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "check.h"
#include "core/observation.h"
#include "core/recorder.h"
#include "core/wake_signal.h"

namespace pertoken {
namespace {

using std::chrono::hours;

TEST(a_signal_ends_the_sleep_of_now_and_the_next_one) {
  WakeSignal signal;
  signal.wake();
  signal.wake();
  signal.wait_for(hours(1));
  std::atomic<int> woken{0};
  std::thread sleeper([&] {
    for (int i = 0; i < 1000; ++i) {
      while (woken.load(std::memory_order_acquire) == i) signal.wait_for(hours(1));
    }
  });
  for (int i = 1; i <= 1000; ++i) {
    woken.store(i, std::memory_order_release);
    signal.wake();
    if (i % 100 == 0) std::this_thread::yield();
  }
  sleeper.join();
}

TEST(a_sleep_ends_by_itself) {
  WakeSignal signal;
  signal.wait_for(std::chrono::nanoseconds(1));
  signal.wait_for(std::chrono::microseconds(1500));
}

std::shared_ptr<Recorder> sleeping_recorder() {
  RecorderOptions options;
  options.ring_capacity = 64;
  options.longest_wait = hours(24);
  return Recorder::create(options);
}

TEST(a_ring_that_fills_wakes_the_collector) {
  const std::shared_ptr<Recorder> recorder = sleeping_recorder();
  CHECK(recorder->start());
  ThreadBuffer* buffer = recorder->buffer();
  for (int round = 0; round < 20; ++round) {
    const uint64_t taken = buffer->ring.taken();
    while (buffer->ring.taken() == taken) {
      const uint64_t now = now_ticks();
      buffer->push({now, now, make_tag(RecordType::kGap, 1), kNone32, 0, kNone32});
      std::this_thread::yield();
    }
  }
  recorder->stop();
}

TEST(observations_that_pile_up_wake_the_collector) {
  const std::shared_ptr<Recorder> recorder = sleeping_recorder();
  CHECK(recorder->start());
  while (recorder->status().drain_cpu_ns == 0) std::this_thread::yield();  // its first round
  const uint64_t slept_since = recorder->status().drain_cpu_ns;
  for (size_t i = 0; i < ObservationIntake::kMostWaiting / 2; ++i) {
    Observation observation;
    observation.step = kNone32;
    recorder->observations().push(std::move(observation));
  }
  while (recorder->status().drain_cpu_ns == slept_since) std::this_thread::yield();
  recorder->stop();
}

}  // namespace
}  // namespace pertoken
