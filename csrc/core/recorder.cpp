#include "core/recorder.h"

#include <pthread.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <csignal>
#include <utility>

namespace pertoken {

namespace {

// Where devices wait for their events to come back, of which there are few.
constexpr std::chrono::milliseconds kDeviceWait{20};

}  // namespace

Recorder::Recorder(const RecorderOptions& options, uint64_t uid)
    : uid_(uid),
      options_(options),
      observation_rate_(std::max<uint32_t>(options.observe_every, 1), options.observe_seed),
      collector_(options.store_limit_bytes) {}

Recorder::~Recorder() {
  stop();
  {
    const std::lock_guard lock(mutex_);
    leaving_ = true;
  }
  wake_.wake();
  if (thread_.joinable()) thread_.join();
}

bool Recorder::start() {
  if (in_forked_child_ || active()) return true;
  std::thread finished;
  {
    const std::lock_guard lock(mutex_);
    finished = std::move(thread_);
    leaving_ = true;  // what is pending, the next thread waits for
  }
  wake_.wake();
  if (finished.joinable()) finished.join();
  if (!take_slot()) return false;
  try {
    const std::lock_guard lock(mutex_);
    clock_.sample();
    spool_clock_locked();
    stopping_ = leaving_ = false;
    thread_ = std::thread([this] { run(); });
  } catch (...) {
    release_slot();
    throw;
  }
  active_.store(true, std::memory_order_relaxed);
  return true;
}

void Recorder::stop() noexcept {
  active_.store(false, std::memory_order_relaxed);
  if (in_forked_child_) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.wake();
  release_slot();
}

void Recorder::run() noexcept {
  pthread_setname_np(pthread_self(), "pertoken-drain");
  sigset_t all;  // the process's signals are for the program's threads, which may wait for them
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  int64_t counted_cpu_ns = 0;
  int64_t begun_ns = detail::read_clock_ns(CLOCK_MONOTONIC);
  int rounds_for_devices = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    const bool last_round = stopping_;
    const int64_t before_ns = std::exchange(begun_ns, detail::read_clock_ns(CLOCK_MONOTONIC));
    size_t fullest = 0;
    try {
      fullest = drain_locked();
      clock_.sample();
      spool_clock_locked();
    } catch (...) {
      ++collector_faults_;
    }
    const int64_t cpu_ns = detail::read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
    drain_cpu_ns_ += static_cast<uint64_t>(cpu_ns - counted_cpu_ns);
    counted_cpu_ns = cpu_ns;
    if (sampler_ != nullptr) {
      const double now_ns = static_cast<double>(now_ticks()) * collector_.ns_per_tick();
      sampler_->control(now_ns, static_cast<double>(drain_cpu_ns_));
    }
    if (last_round) {
      if (leaving_ || !devices_are_pending_locked()) return;
      if (++rounds_for_devices > kRoundsForDevices) return give_up_devices_locked();
      sleep_locked(lock, kShortestWait);
      continue;
    }
    // Come back when a ring that fills as fast as the fullest one did would be a quarter full.
    const std::chrono::nanoseconds filled_for{begun_ns - before_ns};
    const auto quarter_after =
        filled_for / std::max<size_t>(fullest, 1) * (options_.ring_capacity / 4);
    sleep_locked(lock, std::clamp<std::chrono::nanoseconds>(quarter_after, kShortestWait,
                                                            longest_wait_locked()));
  }
}

// Until something is to be done: a ring is half full, or it is the end.
void Recorder::sleep_locked(std::unique_lock<std::mutex>& lock, std::chrono::nanoseconds longest) {
  lock.unlock();
  wake_.wait_for(longest);
  lock.lock();
}

std::chrono::milliseconds Recorder::longest_wait_locked() {
  const bool is_awaited =
      !device_sources_.empty() || device_observations_ != nullptr || device_logits_ != nullptr;
  return is_awaited ? std::min(kDeviceWait, options_.longest_wait) : options_.longest_wait;
}

void Recorder::drain() {
  const std::lock_guard lock(mutex_);
  drain_locked();
}

// The rate moves by parts in a million: for durations, once a second is more than enough.
void Recorder::refresh_rate_locked() {
  constexpr double kRefreshNs = 1e9;
  const uint64_t now = now_ticks();
  const double passed_ns = static_cast<double>(now - rate_ticks_) * collector_.ns_per_tick();
  if (passed_ns < kRefreshNs && rate_ticks_ != 0) return;
  rate_ticks_ = now;
  if (!replayed_clock_) clock_.trim(collector_.store().oldest_ticks(now));
  collector_.set_rate(1e9 / clock_map_locked().ticks_per_second());
}

void Recorder::take_arrivals_locked() {
  arrivals_.take(buffers_, [&](const ThreadBuffer& buffer) {
    collector_.tracks().add_thread(buffer.track, buffer.tid, buffer.name);
  });
}

// Returns the largest number of records that one buffer held.
size_t Recorder::drain_locked() {
  refresh_rate_locked();
  if (spool_ != nullptr) spool_->begin_round();
  collector_.requests().begin_round();
  take_arrivals_locked();
  size_t fullest = collect_logits();
  for (auto at = buffers_.begin(); at != buffers_.end();) {
    ThreadBuffer& buffer = **at;
    // Pairs with the release store in detach_thread(); read before the ring, so that an exited
    // thread's ring is empty for good once it is drained.
    const bool exited = buffer.thread_exited.load(std::memory_order_acquire);
    fullest = std::max(fullest, drain_buffer_locked(buffer));
    if (!exited || shares_rings_ || !buffer.ring.readable().empty()) {
      ++at;
      continue;
    }
    if (buffer.device_thread != nullptr) {
      for (const auto& source : device_sources_) source->release(*buffer.device_thread);
    }
    dropped_by_gone_threads_ += buffer.dropped.load(std::memory_order_relaxed);
    collector_.store().close_track(buffer.track);
    if (buffer.ring_file != nullptr && !in_forked_child_) buffer.ring_file->remove();
    at = buffers_.erase(at);
  }
  collect_devices_locked();
  fullest = std::max(fullest, collect_observations());
  collector_.requests().end_round();
  if (spool_ != nullptr) spool_losses_locked();
  collector_.evict(options_.keep_ns);
  if (collector_.triggers().has_fired()) trigger_wake_.notify_all();
  if (collector_.tracks().are_many()) forget_tracks_locked();
  return fullest;
}

size_t Recorder::drain_buffer_locked(ThreadBuffer& buffer) {
  size_t drained = 0;
  // Bounded, so that one busy thread cannot keep the collector from the others.
  if (shares_rings_) return 0;
  while (drained < buffer.ring.capacity()) {
    std::span<const Record> records = buffer.ring.readable();
    if (records.empty()) break;
    if (spool_ != nullptr) {
      records = records.first(std::min(records.size(), kFrameRecords));
      spool_batch_locked(buffer, records);
    }
    size_t done = 0;
    try {
      for (; done < records.size(); ++done) {
        collector_.collect(records[done], buffer.progress, buffer.track);
      }
    } catch (...) {
      ++collector_faults_;
    }
    if (spool_ != nullptr) spool_->saw_step(collector_.newest_step());
    // A record that could not be stored is lost and counted; the rest of its batch is not.
    const size_t taken = std::min(done + 1, records.size());
    buffer.ring.release(taken);
    drained += taken;
    if (drained % 16384 < taken) collector_.evict(options_.keep_ns);
  }
  return drained;
}

}  // namespace pertoken
