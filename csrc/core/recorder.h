// A recorder: the native side of one recording. Producers (model threads) push records through
// their thread buffers; one drain thread hands them to the collector.
// Everything here but `active`, `next_step` and `buffer()` is cold.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "core/clock_calibrator.h"
#include "core/collector.h"
#include "core/device_results.h"
#include "core/device_source.h"
#include "core/observation_intake.h"
#include "core/observation_rate.h"
#include "core/sampler.h"
#include "core/spool.h"
#include "core/thread_arrivals.h"
#include "core/thread_buffer.h"
#include "core/wake_signal.h"

namespace pertoken {

class LogitReader;  // of the bindings, as is the next
class CallSlots;

struct RecorderOptions {
  size_t store_limit_bytes = size_t{256} << 20;
  size_t ring_capacity = size_t{1} << 16;  // records a thread
  // For how long the drain thread sleeps where next to nothing is recorded.
  std::chrono::milliseconds longest_wait{500};
  uint64_t keep_ns = 0;         // the store holds no more than the last ones; 0: any
  uint32_t observe_every = 16;  // steps of a kind, of which one is observed
  uint64_t observe_seed = 0;    // chooses which
};

struct RecorderLosses {
  uint64_t records_dropped = 0;   // rings that were full, threads that could not be attached
  uint64_t recording_faults = 0;  // on the model's threads: see count_fault()
  uint64_t collector_faults = 0;  // records lost to a fault in the drain thread
  uint64_t spans_evicted = 0;
  uint64_t steps_evicted = 0;
  uint64_t observations_dropped = 0;  // the collector was too far behind
  uint64_t observations_evicted = 0;
  ObservationLosses device_observations;
  ObservationLosses device_logits;  // tokens
  DeviceLosses devices;
  uint64_t spool_frames_lost = 0;  // that could not be written
};

struct RecorderSnapshot {
  StoreSnapshot store;
  ClockMap clock;
  std::vector<TrackInfo> tracks;  // ascending; those that nothing is held of may be missing
  RecorderLosses losses;
};

// What a person is told of a recording while it runs.
struct RecorderStatus {
  Activity activity;
  uint64_t step_ns = 0;       // of steps that ended
  uint64_t drain_cpu_ns = 0;  // processor time of the drain threads so far
  size_t store_bytes = 0;
  RecorderLosses losses;
};

struct RecorderTotals : AggregateSnapshot {
  RecorderLosses losses;
};

class Recorder {
 public:
  static std::shared_ptr<Recorder> create(const RecorderOptions& options);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Hot: one relaxed load. Pairs with nothing: a record more or less round start() and stop() is
  // harmless, since rings outlive both.
  bool active() const noexcept { return active_.load(std::memory_order_relaxed); }

  // Hot: the calling thread's buffer, or nullptr when it cannot have one (counted).
  ThreadBuffer* buffer() noexcept {
    ThreadState* state = tls_thread_state;
    if (state != nullptr) [[likely]] {
      const ThreadState::Entry& entry = state->entries[slot()];
      if (entry.recorder_uid == uid_) [[likely]]
        return entry.buffer;
    }
    return attach_thread();
  }

  // Records no more than its budget allows. Before the first start().
  void sample(const SamplerOptions& options) {
    sampler_ = std::make_unique<Sampler>(options);
    collector_.set_sampler(sampler_.get());
  }
  // Hot: nullptr where every step gets all that was selected.
  Sampler* sampler() noexcept { return sampler_.get(); }
  SamplerReport sampling();

  // A part of a record could not be found out and was left out or -1.
  void count_fault() noexcept { faults_.fetch_add(1, std::memory_order_relaxed); }

  // Hot: numbers the steps of the recording. Relaxed: only uniqueness matters.
  uint32_t next_step() noexcept { return next_step_.fetch_add(1, std::memory_order_relaxed); }

  // The weight of a step that begins, 0 when it is not to be observed; once a step.
  double observation_weight(uint8_t kind) noexcept { return observation_rate_.next(kind); }
  // Takes observations of any thread and any source.
  ObservationIntake& observations() noexcept { return observations_; }
  // What observes tensors on devices. It is asked in every round of the collector.
  void set_observation_source(std::shared_ptr<ObservationSource> source);
  // What reads logits on devices; likewise. Throws std::bad_alloc.
  void set_logit_source(std::shared_ptr<LogitSource> source);
  // One of those that time the devices, before the first start(). They are asked in every round of
  // the collector, in this order.
  void add_device_source(std::shared_ptr<DeviceSource> source);
  // What the wrappers time devices with: null where there is nothing to time. Kept as long as the
  // recorder. Set before the first start(), and read by the model's threads.
  void set_device_calls(std::shared_ptr<DeviceCalls> calls) { device_calls_ = std::move(calls); }
  DeviceCalls* device_calls() const noexcept { return device_calls_.get(); }
  // What reads logits: null where nobody asked. The same holds for it.
  void set_logit_reader(std::shared_ptr<LogitReader> reader);
  LogitReader* logit_reader() const noexcept { return logit_reader_.get(); }
  // Where wrappers stand that may step aside: null where none may. Set before one stands in a
  // model.
  void set_call_slots(std::shared_ptr<CallSlots> slots) { call_slots_ = std::move(slots); }
  CallSlots* call_slots() const noexcept { return call_slots_.get(); }
  // Leaves all that is recorded in files, too. Before the first start(); throws std::system_error.
  void spool_into(const SpoolOptions& options);
  // nullptr: nothing is spooled. Set before the first start().
  Spool* spool() noexcept { return spool_.get(); }

  // Takes one of kMaxRecorders slots; false when all are taken. Throws std::system_error when no
  // thread can be had.
  bool start();
  // Returns as soon as nothing more is recorded; what is in the rings is drained behind.
  // Devices may come to what was recorded later: for up to a second they are waited for, by the
  // thread that drains, and by snapshot() and totals() once it is stopped.
  void stop() noexcept;
  // Moves everything pushed so far into the store.
  void drain();
  RecorderSnapshot snapshot();
  // A copy of the aggregates at one moment; of the store nothing is touched.
  RecorderTotals totals();
  RecorderStatus status();
  // Processor time of the drain threads up to the end of their last round. Drains nothing.
  uint64_t drain_cpu_ns();
  // Tells the collector of requests: from any thread, never waiting for it.
  RequestEvents& request_events() noexcept { return collector_.requests().events(); }
  int64_t first_step();
  // Of what ended before this, no step is held; 0 while none was evicted. Looks at all steps.
  uint64_t oldest_step_ticks();
  size_t store_bytes();
  size_t attached_threads();

  // Has slow steps, watched values and fire_trigger() wake the thread that waits, until disarmed.
  // Returns how often it was armed.
  uint64_t arm_triggers(const StepTriggers::Times& fixed_ns, std::vector<LearnedTime> learned,
                        WatchedValues values);
  void disarm_triggers();
  void fire_trigger(int signal);
  // What has fired: none when the time is up, or when it is no longer armed as it was at the time
  // of which `armed` was returned. What led to it is then held until the next call.
  std::optional<FiredTriggers> wait_for_trigger(std::chrono::duration<double> timeout,
                                                uint64_t armed);

  // For a recorder that never starts: what another one has spooled, in the same order.
  void replay_clock(std::span<const ClockSample> samples);
  void replay_from(int64_t first_step);  // earlier steps may not be whole
  void replay_round();
  // `goes_on`: behind the last batch of its track, so that what to widen against is known. False,
  // with a part of it taken, where something in it cannot be.
  bool replay(const RecordBatch& batch, bool goes_on);
  // The payload of a frame, with the site's code in this process; likewise.
  bool replay_observation(std::span<const std::byte> frame, uint32_t site);
  void replay_losses(const LossesFrame& losses, uint64_t observations_dropped);

  // Where it stands while it runs. Relaxed: what is found there is checked against uid().
  int slot() const noexcept { return slot_.load(std::memory_order_relaxed); }
  uint64_t uid() const noexcept { return uid_; }
  // Of the time since its last start(). Relaxed: written before `active`, and used under the GIL.
  uint64_t run_uid() const noexcept { return run_uid_.load(std::memory_order_relaxed); }

  // The recorder that runs in a slot, or nullptr. Under the GIL, without which none is destroyed.
  static Recorder* at(int slot) noexcept;
  // Called in a thread that ends.
  static void detach_thread(ThreadState* state) noexcept;

 private:
  friend struct ForkHandlers;

  static constexpr uint64_t kExitsTogether = 16;
  static constexpr std::chrono::milliseconds kShortestWait{1};
  // For how long after stop() devices may still come to what was recorded.
  static constexpr int kRoundsForDevices = 1000;  // of kShortestWait

  Recorder(const RecorderOptions& options, uint64_t uid);
  bool take_slot() noexcept;
  void release_slot() noexcept;
  void leave_registry() noexcept;
  void leave_spool_in_child() noexcept;
  static void forget_gone_recorders(ThreadState& state) noexcept;
  ThreadBuffer* attach_thread() noexcept;
  void run() noexcept;
  void sleep_locked(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds longest);
  std::chrono::milliseconds longest_wait_locked();
  void refresh_rate_locked();
  void take_arrivals_locked();
  size_t drain_locked();
  size_t drain_buffer_locked(ThreadBuffer& buffer);
  size_t collect_observations();
  size_t collect_logits() noexcept;
  size_t as_records(double fullness) const noexcept;
  void collect_devices_locked();
  bool devices_are_pending_locked();
  void give_up_devices_locked() noexcept;
  void settle_locked(std::unique_lock<std::mutex>& lock);
  void spool_clock_locked();
  void spool_losses_locked();
  void spool_batch_locked(const ThreadBuffer& buffer, std::span<const Record> records);
  ClockMap clock_map_locked();
  void forget_tracks_locked();
  RecorderLosses record_losses_locked() const;
  RecorderLosses losses_locked();

  // What every call reads, on one cache line.
  alignas(kCacheLineBytes) const uint64_t uid_;
  std::atomic<int> slot_{0};
  std::atomic<bool> active_{false};
  std::shared_ptr<DeviceCalls> device_calls_;
  std::shared_ptr<LogitReader> logit_reader_;
  std::unique_ptr<Sampler> sampler_;
  std::shared_ptr<CallSlots> call_slots_;
  std::atomic<uint32_t> next_step_{0};
  WakeSignal wake_;  // of the drain thread
  std::atomic<uint64_t> run_uid_{0};
  const RecorderOptions options_;
  ObservationRate observation_rate_;
  uint64_t threads_exited_ = 0;  // under the registry's mutex
  ObservationIntake observations_{&wake_};
  std::atomic<uint64_t> faults_{0};      // a statistic
  std::atomic<uint64_t> unattached_{0};  // records of threads without a buffer; a statistic

  ThreadArrivals arrivals_;

  std::mutex mutex_;  // guards everything below; never taken by the threads that record
  ThreadBuffers buffers_;
  Collector collector_;
  uint64_t dropped_by_gone_threads_ = 0;
  uint64_t collector_faults_ = 0;
  std::vector<std::shared_ptr<DeviceSource>> device_sources_;
  std::shared_ptr<ObservationSource> device_observations_;  // may be null
  std::shared_ptr<LogitSource> device_logits_;              // likewise
  ThreadBuffer* logits_buffer_ = nullptr;  // what that one tells; the drain's on both sides
  std::vector<DeviceSpan> device_spans_;   // of one round
  uint64_t drain_cpu_ns_ = 0;              // up to the last round of the last drain thread
  ClockCalibrator clock_;
  uint64_t rate_ticks_ = 0;  // when the rate of ticks was read
  std::condition_variable trigger_wake_;
  std::unique_ptr<Spool> spool_;
  uint64_t samples_spooled_ = 0;  // by the count of the calibrator
  // Of what is replayed.
  std::optional<ClockMap> replayed_clock_;
  std::unordered_map<int32_t, ThreadBuffer::Progress> replayed_;
  RecorderLosses replayed_losses_;

  bool in_forked_child_ = false;  // not so: written by the child's only thread
  bool shares_rings_ = false;     // likewise; the rings are its parent's
  bool stopping_ = false;
  bool leaving_ = false;  // the thread is not to wait for devices any longer
  std::thread thread_;
};

}  // namespace pertoken
