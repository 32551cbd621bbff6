// Fifty million spans through rings, collector and store: what was pushed is held, evicted or
// dropped, to the last span, and the memory stays what it was after the first million.
#include <malloc.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "check.h"
#include "core/recorder.h"

namespace pertoken {
namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;  // slow, and with memory of its own
constexpr uint64_t kSpans = 1'000'000;
constexpr int kThreadsThatComeAndGo = 200;
#else
constexpr bool kSanitized = false;
constexpr uint64_t kSpans = 50'000'000;
constexpr int kThreadsThatComeAndGo = 5'000;
#endif
constexpr size_t kLimit = size_t{32} << 20;
constexpr size_t kRing = size_t{1} << 14;
constexpr size_t kSlack = size_t{8} << 20;

// Resident pages now, with what was freed given back.
size_t resident_bytes() {
  malloc_trim(0);
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*s %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return static_cast<size_t>(pages) * 4096;
}

struct Pushed {
  uint64_t spans = 0;
  uint64_t spans_dropped = 0;
  uint64_t steps = 0;
  uint64_t steps_dropped = 0;
  uint64_t ends_dropped = 0;

  Pushed& operator+=(const Pushed& other) {
    spans += other.spans;
    spans_dropped += other.spans_dropped;
    steps += other.steps;
    steps_dropped += other.steps_dropped;
    ends_dropped += other.ends_dropped;
    return *this;
  }
};

// Whether the record found room. A full ring gives the collector the processor, so that most do.
bool push(ThreadBuffer& buffer, const Record& record) {
  const uint64_t before = buffer.dropped.load(std::memory_order_relaxed);
  buffer.push(record);
  if (buffer.dropped.load(std::memory_order_relaxed) == before) return true;
  sched_yield();
  return false;
}

Pushed push_steps(Recorder& recorder, uint64_t spans, int spans_a_step) {
  Pushed pushed;
  ThreadBuffer& buffer = *recorder.buffer();
  while (pushed.spans < spans) {
    const uint32_t step = recorder.next_step();
    const uint64_t start = now_ticks();
    const auto kind = static_cast<uint32_t>(StepKind::kDecode);
    ++pushed.steps;
    pushed.steps_dropped += !push(
        buffer, {start, uint64_t{1} << 32 | 1, make_tag(RecordType::kStepBegin, kind), 0, 0, step});
    for (int i = 0; i < spans_a_step; ++i) {
      ++pushed.spans;
      const uint32_t seq = tls_thread_state->next_seq();
      pushed.spans_dropped +=
          !push(buffer, {start, start + static_cast<uint64_t>(i) * 100,
                         make_tag(RecordType::kSpan, static_cast<uint32_t>(i)), seq, 0, step});
    }
    pushed.ends_dropped +=
        !push(buffer, {now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
  }
  return pushed;
}

void check_conservation(const Pushed& pushed, const RecorderSnapshot& snapshot) {
  uint64_t spans_held = 0;
  for (const auto& chunk : snapshot.store.chunks) {
    for (uint32_t i = 0; i < chunk->size(); ++i) {
      spans_held += chunk->at(i).step >= snapshot.store.first_step;
    }
  }
  uint64_t steps_held = 0;
  for (const StepRow& row : snapshot.store.steps) steps_held += row.begun;
  const RecorderLosses& losses = snapshot.losses;
  CHECK_EQ(losses.collector_faults, uint64_t{0});
  CHECK_EQ(losses.records_dropped,
           pushed.spans_dropped + pushed.steps_dropped + pushed.ends_dropped);
  CHECK_EQ(spans_held + losses.spans_evicted + pushed.spans_dropped, pushed.spans);
  CHECK_EQ(steps_held + losses.steps_evicted + pushed.steps_dropped, pushed.steps);
}

TEST(fifty_million_spans_are_held_evicted_or_dropped_within_the_limit) {
  const auto recorder = Recorder::create({.store_limit_bytes = kLimit, .ring_capacity = kRing});
  recorder->start();
  constexpr int kThreads = 2;
  constexpr int kRounds = 10;
  const size_t before = resident_bytes();
  Pushed total;
  size_t most = 0;
  for (int round = 0; round < kRounds; ++round) {
    Pushed pushed[kThreads];
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&recorder, mine = &pushed[t]] {
        *mine = push_steps(*recorder, kSpans / kThreads / kRounds, 59);
      });
    }
    for (auto& thread : threads) thread.join();
    for (const Pushed& part : pushed) total += part;
    recorder->drain();
    CHECK(recorder->store_bytes() <= kLimit);
    most = std::max(most, resident_bytes());
  }
  recorder->stop();
  CHECK(total.spans >= kSpans);
  const RecorderSnapshot snapshot = recorder->snapshot();
  check_conservation(total, snapshot);
  CHECK(snapshot.losses.spans_evicted > 0 || kSanitized);
  if (!kSanitized) {
    CHECK(most < before + kLimit + kThreads * kRing * sizeof(Record) + kSlack);
  }
}

TEST(threads_that_come_and_go_leave_nothing) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 20, .ring_capacity = 256});
  recorder->start();
  Pushed total;
  size_t early = 0;
  size_t most_tracks = 0;
  int32_t last_track = -1;
  for (int i = 0; i < kThreadsThatComeAndGo; ++i) {
    std::thread([&] { total += push_steps(*recorder, 4, 4); }).join();
    if (i == kThreadsThatComeAndGo / 2) early = resident_bytes();
    if (i % 100 != 99) continue;
    const RecorderSnapshot snapshot = recorder->snapshot();
    most_tracks = std::max(most_tracks, snapshot.tracks.size());
    CHECK(snapshot.tracks.back().track > last_track);
    last_track = snapshot.tracks.back().track;
    std::vector<int32_t> held;
    for (const TrackInfo& track : snapshot.tracks) held.push_back(track.track);
    CHECK(std::is_sorted(held.begin(), held.end()));
    for (const auto& chunk : snapshot.store.chunks) {
      CHECK(std::binary_search(held.begin(), held.end(), chunk->track()));
    }
  }
  recorder->stop();
  CHECK_EQ(recorder->attached_threads(), size_t{0});
  CHECK_EQ(last_track, kThreadsThatComeAndGo - 1);
  // A chunk a thread: the store holds some 140 of them, and the table at most 1,024 that it does
  // not.
  CHECK(most_tracks <= 1300);
  check_conservation(total, recorder->snapshot());
  // A sixteenth of what the rings alone of the second half's threads would be; on a busy machine
  // the allocator keeps some of what it was given back.
  constexpr size_t kRings = kThreadsThatComeAndGo / 2 * 256 * sizeof(Record);
  if (!kSanitized) CHECK(resident_bytes() < early + kRings / 16);
}

TEST(starts_and_stops_race_with_threads_that_come_and_go_and_with_snapshots) {
  const auto recorder = Recorder::create({.store_limit_bytes = kLimit, .ring_capacity = 1 << 10});
  std::atomic<bool> done{false};
  std::thread switcher([&] {
    while (!done.load(std::memory_order_relaxed)) {
      recorder->start();
      sched_yield();
      recorder->stop();
    }
  });
  std::thread reader([&] {
    while (!done.load(std::memory_order_relaxed)) static_cast<void>(recorder->snapshot());
  });
  std::vector<Pushed> pushed(100);
  for (size_t i = 0; i < pushed.size(); i += 2) {
    std::thread one([&, i] { pushed[i] = push_steps(*recorder, 400, 8); });
    std::thread two([&, i] { pushed[i + 1] = push_steps(*recorder, 400, 8); });
    one.join();
    two.join();
  }
  done.store(true, std::memory_order_relaxed);
  switcher.join();
  reader.join();
  Pushed total;
  for (const Pushed& part : pushed) total += part;
  check_conservation(total, recorder->snapshot());
  CHECK_EQ(recorder->attached_threads(), size_t{0});
}

}  // namespace
}  // namespace pertoken
