// The drain thread when there is no memory for what it stores: what is lost is counted, and it
// goes on. In a file of its own, since it replaces the allocator.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <thread>

#include "check.h"
#include "core/recorder.h"

namespace {

std::atomic<bool> no_large_blocks{false};  // relaxed: set while the threads it is for stand still
std::atomic<int> refused{0};

// A chunk of the store takes more, a record's bookkeeping less.
constexpr size_t kLarge = 4096;

}  // namespace

void* operator new(size_t size) {
  if (size >= kLarge && no_large_blocks.load(std::memory_order_relaxed)) {
    refused.fetch_add(1, std::memory_order_relaxed);
    throw std::bad_alloc();
  }
  if (void* block = std::malloc(size)) return block;
  throw std::bad_alloc();
}
void* operator new[](size_t size) { return ::operator new(size); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
// As for the rings, which are aligned to cache lines.
void* operator new(size_t size, std::align_val_t alignment) {
  if (size >= kLarge && no_large_blocks.load(std::memory_order_relaxed)) {
    refused.fetch_add(1, std::memory_order_relaxed);
    throw std::bad_alloc();
  }
  const auto unit = static_cast<size_t>(alignment);
  if (void* block = std::aligned_alloc(unit, (size + unit - 1) / unit * unit)) return block;
  throw std::bad_alloc();
}
void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  const auto unit = static_cast<size_t>(alignment);
  return std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
}
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, size_t, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }

namespace pertoken {
namespace {

void push_spans(Recorder& recorder, int count) {
  ThreadBuffer& buffer = *recorder.buffer();
  for (int i = 0; i < count; ++i) {
    const uint64_t now = now_ticks();
    buffer.push(
        {now, now + 1, make_tag(RecordType::kSpan, 1), tls_thread_state->next_seq(), 0, kNone32});
  }
}

// Returns when the drain thread has moved everything and ended.
void finish(Recorder& recorder) {
  recorder.stop();
  recorder.start();  // waits for the thread of the run before
  recorder.stop();
}

uint64_t spans_held(const RecorderSnapshot& snapshot) {
  uint64_t count = 0;
  for (const auto& chunk : snapshot.store.chunks) count += chunk->size();
  return count;
}

TEST(spans_without_memory_are_counted_and_the_drain_thread_goes_on) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 30, .ring_capacity = 1 << 12});
  recorder->start();
  push_spans(*recorder, 300);
  finish(*recorder);
  no_large_blocks.store(true, std::memory_order_relaxed);
  recorder->start();
  push_spans(*recorder, 1000);
  finish(*recorder);
  no_large_blocks.store(false, std::memory_order_relaxed);
  recorder->start();
  push_spans(*recorder, 500);
  finish(*recorder);

  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK(refused.load(std::memory_order_relaxed) > 0);
  CHECK(snapshot.losses.collector_faults > 0);
  CHECK_EQ(snapshot.losses.records_dropped, uint64_t{0});
  CHECK_EQ(spans_held(snapshot) + snapshot.losses.collector_faults, uint64_t{1800});
  CHECK(spans_held(snapshot) >= 800);  // all that was pushed while there was memory
}

TEST(a_thread_without_memory_for_a_ring_is_counted_and_tries_again) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 30, .ring_capacity = 1 << 12});
  std::thread([&] {
    no_large_blocks.store(true, std::memory_order_relaxed);
    CHECK(recorder->buffer() == nullptr);
    CHECK(recorder->buffer() == nullptr);
    no_large_blocks.store(false, std::memory_order_relaxed);
    push_spans(*recorder, 3);
  }).join();
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK_EQ(snapshot.losses.records_dropped, uint64_t{2});
  CHECK_EQ(spans_held(snapshot), uint64_t{3});
  CHECK_EQ(snapshot.tracks.size(), size_t{1});
}

TEST(what_a_thread_that_ended_has_left_is_stored_or_counted) {
  const auto recorder =
      Recorder::create({.store_limit_bytes = size_t{1} << 30, .ring_capacity = 1 << 12});
  // Not started: nobody else drains.
  std::thread([&] { push_spans(*recorder, 4000); }).join();
  no_large_blocks.store(true, std::memory_order_relaxed);
  recorder->drain();
  no_large_blocks.store(false, std::memory_order_relaxed);
  const RecorderSnapshot snapshot = recorder->snapshot();
  CHECK(snapshot.losses.collector_faults > 0);
  CHECK_EQ(spans_held(snapshot) + snapshot.losses.collector_faults, uint64_t{4000});
  CHECK_EQ(recorder->attached_threads(), size_t{0});
}

}  // namespace
}  // namespace pertoken
