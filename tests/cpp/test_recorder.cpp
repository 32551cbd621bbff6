// From many threads' pushes to one snapshot: nothing lost unless counted, nothing invented, while
// threads come and go, snapshots are taken and the process forks.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <semaphore>
#include <thread>
#include <vector>

#include "check.h"
#include "core/recorder.h"

namespace pertoken {
namespace {

constexpr size_t kUnlimited = size_t{1} << 40;

void push_span(Recorder& recorder, uint32_t site, uint32_t step) {
  ThreadBuffer* buffer = recorder.buffer();
  const uint64_t now = now_ticks();
  buffer->push(
      {now, now + 50, make_tag(RecordType::kSpan, site), tls_thread_state->next_seq(), 0, step});
}

void push_step(Recorder& recorder, StepKind kind, int spans) {
  ThreadBuffer* buffer = recorder.buffer();
  const uint32_t step = recorder.next_step();
  const uint64_t start = now_ticks();
  buffer->push({start, uint64_t{2} << 32 | 3,
                make_tag(RecordType::kStepBegin, static_cast<uint32_t>(kind)), kNone32, 7, step});
  for (int i = 0; i < spans; ++i) push_span(recorder, static_cast<uint32_t>(i), step);
  buffer->push({now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
}

size_t span_count(const RecorderSnapshot& snapshot) {
  size_t count = 0;
  for (const auto& chunk : snapshot.store.chunks) count += chunk->size();
  return count;
}

TEST(every_record_of_many_threads_is_stored_or_counted) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 1 << 12});
  recorder->start();
  constexpr int kThreads = 8;
  constexpr int kSteps = 500;
  constexpr int kSpans = 20;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int s = 0; s < kSteps; ++s) push_step(*recorder, StepKind::kDecode, kSpans);
    });
  }
  for (int i = 0; i < 20; ++i) static_cast<void>(recorder->snapshot());
  for (auto& thread : threads) thread.join();
  recorder->stop();
  const RecorderSnapshot snapshot = recorder->snapshot();
  uint64_t ended = 0;
  uint64_t begun = 0;
  for (const StepRow& row : snapshot.store.steps) {
    begun += row.begun;
    ended += row.end_ticks != 0;
    if (row.begun) {
      CHECK_EQ(row.rows, 2u);
      CHECK_EQ(row.query_len, 3u);
      CHECK_EQ(row.past, 7u);
    }
  }
  CHECK_EQ(snapshot.tracks.size(), size_t{kThreads});
  CHECK_EQ(snapshot.losses.collector_faults, uint64_t{0});
  const uint64_t pushed = uint64_t{kThreads} * kSteps * (kSpans + 2);
  CHECK(ended <= begun);
  // A step's end without its begin is dropped with it, hence at most.
  CHECK(span_count(snapshot) + begun + ended + snapshot.losses.records_dropped <= pushed);
  if (snapshot.losses.records_dropped == 0) {
    CHECK_EQ(span_count(snapshot), size_t{kThreads} * kSteps * kSpans);
    CHECK_EQ(begun, uint64_t{kThreads} * kSteps);
    CHECK_EQ(ended, begun);
  }
}

// A device, or a disk, that does not answer while a drain round asks it.
struct StuckSource : DeviceSource {
  void collect(double, std::vector<DeviceSpan>&) override {
    is_asked.release();
    may_answer.acquire();
    may_answer.release();
  }
  bool is_pending() override { return false; }
  void give_up() noexcept override {}
  DeviceLosses losses() override { return {}; }

  std::counting_semaphore<> is_asked{0};
  std::counting_semaphore<> may_answer{0};
};

TEST(a_thread_begins_to_record_while_the_collector_hangs) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 1 << 8});
  const auto source = std::make_shared<StuckSource>();
  recorder->add_device_source(source);
  std::thread collector([&] { recorder->drain(); });
  source->is_asked.acquire();
  std::thread([&] { push_step(*recorder, StepKind::kDecode, 3); }).join();
  source->may_answer.release();
  collector.join();
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(span_count(snapshot), size_t{3});
  CHECK_EQ(snapshot.tracks.size(), size_t{1});
  CHECK_EQ(snapshot.losses.records_dropped, uint64_t{0});
  CHECK_EQ(recorder->attached_threads(), size_t{0});
}

TEST(a_full_ring_drops_and_counts) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 64});
  // Not started: nobody drains.
  for (int i = 0; i < 100; ++i) push_span(*recorder, 1, 0);
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(span_count(snapshot), size_t{64});
  CHECK_EQ(snapshot.losses.records_dropped, uint64_t{36});
}

TEST(a_thread_that_ended_keeps_its_records_and_frees_its_buffer) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 256});
  for (int t = 0; t < 50; ++t) {
    std::thread([&] {
      for (int i = 0; i < 10; ++i) push_span(*recorder, 1, 0);
    }).join();
  }
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(span_count(snapshot), size_t{500});
  CHECK_EQ(snapshot.tracks.size(), size_t{50});
  CHECK_EQ(recorder->attached_threads(), size_t{0});
}

TEST(aggregates_outlive_eviction) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{256} << 10, .ring_capacity = 1 << 12});
  constexpr int kSteps = 3000;
  for (int s = 0; s < kSteps; ++s) {
    push_step(*recorder, s % 3 == 0 ? StepKind::kPrefill : StepKind::kDecode, 10);
    recorder->drain();
  }
  const AggregateSnapshot totals = recorder->totals();
  CHECK_EQ(totals.steps[static_cast<size_t>(StepKind::kPrefill)].begun, uint64_t{1000});
  CHECK_EQ(totals.steps[static_cast<size_t>(StepKind::kDecode)].begun, uint64_t{2000});
  CHECK_EQ(totals.steps[static_cast<size_t>(StepKind::kDecode)].wall_ns.count(), uint64_t{2000});
  CHECK_EQ(totals.steps[static_cast<size_t>(StepKind::kDecode)].tokens_in, uint64_t{2000 * 6});
  uint64_t spans = 0;
  for (const SiteTotals& site : totals.sites) {
    CHECK(site.kind == static_cast<uint8_t>(StepKind::kPrefill) ||
          site.kind == static_cast<uint8_t>(StepKind::kDecode));
    spans += site.dur_ns.count();
  }
  CHECK_EQ(spans, uint64_t{kSteps} * 10);
  CHECK(recorder->first_step() > 0);
}

TEST(a_gap_lies_in_no_step_and_counts_to_the_kind_of_the_next) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 64});
  ThreadBuffer* buffer = recorder->buffer();
  buffer->push({10, 0, make_tag(RecordType::kStepBegin, static_cast<uint32_t>(StepKind::kDecode)),
                kNone32, 0, 4});
  buffer->push({5, 10, make_tag(RecordType::kGap, 3), 1, 0, 4});
  const AggregateSnapshot totals = recorder->totals();
  CHECK_EQ(totals.sites.size(), size_t{1});
  CHECK_EQ(static_cast<int>(totals.sites[0].kind), static_cast<int>(StepKind::kDecode));
  CHECK_EQ(recorder->snapshot().store.chunks.at(0)->at(0).step, kNoStep);
}

TEST(so_many_recorders_run_at_once_and_slots_are_used_again) {
  std::vector<std::shared_ptr<Recorder>> held;
  for (int i = 0; i < kMaxRecorders; ++i) {
    held.push_back(Recorder::create({.store_limit_bytes = 1 << 20, .ring_capacity = 64}));
    CHECK(held.back()->start());
    push_span(*held.back(), 1, 0);
  }
  const auto fresh = Recorder::create({.store_limit_bytes = 1 << 20, .ring_capacity = 64});
  CHECK(!fresh->start());
  CHECK(!fresh->active());
  held[3]->stop();
  CHECK(fresh->start());
  CHECK_EQ(fresh->slot(), held[3]->slot());
  // This thread still holds the entry of the recorder that stood there; it must not be used.
  push_span(*fresh, 1, 0);
  push_span(*held[3], 1, 0);
  push_span(*fresh, 1, 0);
  CHECK_EQ(span_count(fresh->snapshot()), size_t{2});
  CHECK_EQ(span_count(held[3]->snapshot()), size_t{2});
  CHECK_EQ(held[3]->snapshot().tracks.size(), size_t{1});
}

TEST(a_thread_that_ends_frees_its_buffer_in_a_stopped_recorder_too) {
  const auto first = Recorder::create({.store_limit_bytes = 1 << 20, .ring_capacity = 64});
  const auto second = Recorder::create({.store_limit_bytes = 1 << 20, .ring_capacity = 64});
  std::thread([&] {
    first->start();
    push_span(*first, 1, 0);
    first->stop();
    second->start();
    push_span(*second, 1, 0);
  }).join();
  CHECK_EQ(span_count(first->snapshot()), size_t{1});
  CHECK_EQ(span_count(second->snapshot()), size_t{1});
  CHECK_EQ(first->attached_threads(), size_t{0});
  CHECK_EQ(second->attached_threads(), size_t{0});
}

TEST(starts_and_stops_many_times) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 1024});
  for (int i = 0; i < 100; ++i) {
    recorder->start();
    push_span(*recorder, 1, 0);
    recorder->stop();
  }
  CHECK_EQ(span_count(recorder->snapshot()), size_t{100});
}

TEST(numbers_wider_than_32_bits_come_out_whole) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 64});
  ThreadBuffer* buffer = recorder->buffer();
  const uint32_t seqs[] = {0xFFFFFFF0u, 0xFFFFFFFFu, 5u, 0xFFFFFFFEu, 3u};
  const int64_t expected[] = {0xFFFFFFF0ll, 0xFFFFFFFFll, 0x100000005ll, 0xFFFFFFFEll,
                              0x100000003ll};
  for (const uint32_t seq : seqs) {
    buffer->push({1, 2, make_tag(RecordType::kSpan, 0), seq, seq - 7, kNone32});
  }
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(span_count(snapshot), size_t{5});
  for (uint32_t i = 0; i < snapshot.store.chunks.at(0)->size(); ++i) {
    CHECK_EQ(snapshot.store.chunks.at(0)->at(i).seq, expected[i]);
    CHECK_EQ(snapshot.store.chunks.at(0)->at(i).parent_seq, expected[i] - 7);
  }
}

TEST(steps_that_overlap_on_a_thread_each_keep_what_is_theirs) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 64});
  ThreadBuffer* buffer = recorder->buffer();
  const auto begin = [&](uint32_t step, StepKind kind) {
    buffer->push({now_ticks(), 0, make_tag(RecordType::kStepBegin, static_cast<uint32_t>(kind)),
                  kNone32, 0, step});
  };
  const auto end = [&](uint32_t step) {
    buffer->push({now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step});
  };
  begin(0, StepKind::kPrefill);
  push_span(*recorder, 1, 0);
  begin(1, StepKind::kDecode);
  push_span(*recorder, 1, 0);
  begin(2, StepKind::kVerify);
  end(1);
  push_span(*recorder, 1, 0);
  push_span(*recorder, 1, 2);
  end(0);
  end(2);
  const AggregateSnapshot totals = recorder->totals();
  CHECK_EQ(totals.sites.size(), size_t{2});
  for (const SiteTotals& site : totals.sites) {
    const bool is_prefill = site.kind == static_cast<uint8_t>(StepKind::kPrefill);
    CHECK(is_prefill || site.kind == static_cast<uint8_t>(StepKind::kVerify));
    CHECK_EQ(site.dur_ns.count(), is_prefill ? uint64_t{3} : uint64_t{1});
  }
}

TEST(the_sampler_sees_each_of_the_steps_that_overlap) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 1024});
  recorder->sample({});
  ThreadBuffer* buffer = recorder->buffer();
  const auto tag = make_tag(RecordType::kStepBegin, static_cast<uint32_t>(StepKind::kDecode));
  for (uint32_t step = 0; step < 102; ++step) {
    buffer->push({now_ticks(), 0, tag, kNone32, 0, step});
    if (step >= 2) {
      buffer->push({now_ticks(), 0, make_tag(RecordType::kStepEnd, 0), 0, 0, step - 2});
    }
  }
  const SamplerReport report = recorder->sampling();
  CHECK_EQ(report.strata[static_cast<size_t>(StepKind::kDecode)].steps, uint64_t{100});
}

TEST(ends_that_were_dropped_do_not_pile_up) {
  OpenSteps steps;
  for (int64_t step = 0; step < 10'000; ++step) steps.begin(step, StepKind::kDecode);
  CHECK(steps.find(0) == nullptr);
  CHECK(steps.find(9'999) != nullptr && steps.find(9'900) != nullptr);
  steps.end(9'900);
  CHECK(steps.find(9'900) == nullptr);
  CHECK(steps.find_low(9'901) != nullptr && steps.find_low(9'901)->step == 9'901);
}

#if !defined(__SANITIZE_THREAD__)
TEST(a_forked_child_records_nothing_and_exits) {
  const auto recorder = Recorder::create({.store_limit_bytes = kUnlimited, .ring_capacity = 1024});
  recorder->start();
  push_span(*recorder, 1, 0);
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(200);  // a deadlock ends the child, and its status fails the check
      const bool inactive = !recorder->active();
      const size_t spans = span_count(recorder->snapshot());
      recorder->start();
      recorder->stop();
      _exit(inactive && spans == static_cast<size_t>(i) + 1 && !recorder->active() ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
    push_span(*recorder, 1, 0);
  }
  recorder->stop();
  CHECK_EQ(span_count(recorder->snapshot()), size_t{21});
}
#endif

}  // namespace
}  // namespace pertoken
