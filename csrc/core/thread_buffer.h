// What one thread holds for one recorder: its ring and its open span and step. The thread finds it
// through one thread-local pointer; the recorder owns it and frees it once the thread is gone and
// the ring is drained.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/mapped_file.h"
#include "core/observed_step.h"
#include "core/open_steps.h"
#include "core/own_time.h"
#include "core/record.h"
#include "core/sampler.h"
#include "core/spool_format.h"
#include "core/spsc_ring.h"
#include "core/wake_signal.h"

namespace pertoken {

inline constexpr int kMaxRecorders = 8;  // that run at once, in one process

struct DeviceThread;  // see device_source.h

inline constexpr int64_t kNoThread = 0;  // in the place of the system's number of one

struct ThreadBuffer {
  // The ring lies in the file, where there is one. `waking` wakes the collector, and outlives this;
  // may be null.
  ThreadBuffer(size_t capacity, int32_t track_number, int64_t system_tid, std::string thread_name,
               WakeSignal* waking = nullptr, std::unique_ptr<MappedFile> file = nullptr)
      : collector(waking),
        ring(capacity, file == nullptr ? nullptr : file->data() + kRingFileHeaderBytes),
        ring_file(std::move(file)),
        track(track_number),
        tid(system_tid),
        name(std::move(thread_name)) {}

  // How far the collector is in this track. The collector only, so on a cache line of its own.
  struct alignas(64) Progress {
    int64_t last_seq = -1;  // -1: none yet, and the first is taken as it is
    OwnTime own_time;
    OpenSteps steps;
    int64_t step_before = -1;  // the last one that has ended; pairs.logits_before is of its logits
    SamplePairs pairs;
  };
  Progress progress;

  // What each call looks at, on one cache line; what each step does besides, on the next three.
  alignas(64) WakeSignal* const collector;
  SpscRing<Record> ring;

  // The owning thread only.
  uint32_t open_seq = 0;  // innermost open span, 0 when none
  uint32_t open_step = kNone32;
  uint32_t open_detail = 0;  // of the open step, see step_detail.h
  // By kind of step, what the root's wrapper has taken for itself since the last end of such a step
  // told of it, in ticks; and what logits took of that so far, which is told apart.
  alignas(64) std::array<uint64_t, kStepKinds> root_ticks{};
  UnrecordedCalls unrecorded;  // of the open step
  uint64_t logits_ticks = 0;
  ObservedStep observed;  // the open step, where kDetailActivations says so
  SampleState sampling;
  DeviceThread* device_thread = nullptr;  // the device source's; null until the first span of one
  const std::unique_ptr<MappedFile> ring_file;

  // Written by the owning thread, read by the collector; a statistic, so relaxed on both sides.
  std::atomic<uint64_t> dropped{0};
  // Release by the exiting thread, acquire by the collector before it frees the buffer.
  std::atomic<bool> thread_exited{false};

  const int32_t track;
  const int64_t tid;
  const std::string name;

  // The owning thread only: how many records it has pushed, the dropped ones included.
  uint64_t pushed() const noexcept {
    return ring.pushed() + dropped.load(std::memory_order_relaxed);
  }

  // What a step of the kind tells of it at its end.
  uint64_t take_root_ticks(StepKind kind) noexcept {
    return std::exchange(root_ticks[static_cast<size_t>(kind)], 0);
  }

  void push(const Record& record) noexcept {
    const auto wake_collector = [this]() noexcept {
      if (collector != nullptr) collector->wake();
    };
    if (!ring.try_push(record, wake_collector)) [[unlikely]] {
      dropped.store(dropped.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }
};

// One a thread, shared by all recorders. Allocated the first time a thread records.
struct alignas(kCacheLineBytes) ThreadState {
  explicit ThreadState(uint64_t number) : uid(number) {}

  struct Entry {
    uint64_t recorder_uid = 0;  // 0 matches no recorder
    ThreadBuffer* buffer = nullptr;
  };
  uint32_t last_seq = 0;  // span numbers of this thread, common to all recorders; 0 is never used
  const uint64_t uid;     // never 0, never used again
  Entry entries[kMaxRecorders];  // by the slot that a recorder runs in
  std::vector<Entry> attached;   // every recorder that this thread has a buffer for; cold

  // What the next next_seq() will give.
  uint32_t coming_seq() const noexcept { return last_seq + 1 == 0 ? 1 : last_seq + 1; }

  uint32_t next_seq() noexcept {
    if (++last_seq == 0) [[unlikely]]
      last_seq = 1;
    return last_seq;
  }

  // The first of as many numbers in a row.
  uint32_t next_seqs(uint32_t count) noexcept {
    if (last_seq + count < last_seq) last_seq = 0;
    last_seq += count;
    return last_seq - count + 1;
  }
};

// Initial-exec: one load from the thread pointer instead of a call. The variable is eight bytes,
// which fits the reserve that glibc keeps for libraries loaded at run time.
#if defined(__GLIBC__) && defined(__GNUC__)
#define PERTOKEN_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define PERTOKEN_TLS_MODEL
#endif
extern thread_local constinit ThreadState* tls_thread_state PERTOKEN_TLS_MODEL;

// The calling thread's state, made on first use; nullptr when there is no memory. Cold.
ThreadState* ensure_thread_state() noexcept;

int64_t system_thread_id() noexcept;
std::string system_thread_name();

}  // namespace pertoken
