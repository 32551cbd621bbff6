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
      store_(options.store_limit_bytes) {}

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
    if (sampler_ != nullptr) control_sampler_locked();
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
  if (static_cast<double>(now - rate_ticks_) * ns_per_tick_ < kRefreshNs && rate_ticks_ != 0)
    return;
  rate_ticks_ = now;
  if (!replayed_clock_) clock_.trim(store_.oldest_ticks(now));
  ns_per_tick_ = 1e9 / clock_map_locked().ticks_per_second();
  tracker_.set_rate(ns_per_tick_);
  if (sampler_ != nullptr) sampler_->set_rate(ns_per_tick_);
  triggers_.learn(aggregates_, ns_per_tick_);
}

// Returns the largest number of records that one buffer held.
size_t Recorder::drain_locked() {
  refresh_rate_locked();
  if (spool_ != nullptr) spool_->begin_round();
  tracker_.begin_round();
  size_t fullest = collect_logits();
  for (size_t i = 0; i < buffers_.size();) {
    ThreadBuffer& buffer = *buffers_[i];
    // Pairs with the release store in detach_thread(); read before the ring, so that an exited
    // thread's ring is empty for good once it is drained.
    const bool exited = buffer.thread_exited.load(std::memory_order_acquire);
    fullest = std::max(fullest, drain_buffer_locked(buffer));
    if (!exited) {
      ++i;
      continue;
    }
    if (buffer.device_thread != nullptr) {
      for (const auto& source : device_sources_) source->release(*buffer.device_thread);
    }
    dropped_by_gone_threads_ += buffer.dropped.load(std::memory_order_relaxed);
    store_.close_track(buffer.track);
    if (buffer.ring_file != nullptr) buffer.ring_file->remove();
    buffers_.erase(buffers_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  collect_devices_locked();
  fullest = std::max(fullest, collect_observations());
  tracker_.end_round();
  if (spool_ != nullptr) spool_losses_locked();
  evict_locked();
  if (triggers_.has_fired()) trigger_wake_.notify_all();
  if (tracks_.size() >= forget_tracks_at_) forget_tracks_locked();
  return fullest;
}

size_t Recorder::drain_buffer_locked(ThreadBuffer& buffer) {
  size_t drained = 0;
  // Bounded, so that one busy thread cannot keep the collector from the others.
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
        collect(records[done], buffer.progress, buffer.track);
      }
    } catch (...) {
      ++collector_faults_;
    }
    if (spool_ != nullptr) spool_->saw_step(newest_step_);
    // A record that could not be stored is lost and counted; the rest of its batch is not.
    buffer.ring.release(std::min(done + 1, records.size()));
    drained += records.size();
    if (drained % 16384 < records.size()) evict_locked();
  }
  return drained;
}

void Recorder::collect(const Record& record, ThreadBuffer::Progress& progress, int32_t track) {
  activity_.add(record);
  const int64_t step =
      record.step == kNone32 ? kNoStep : (last_step_ = widen(last_step_, record.step));
  newest_step_ = std::max(newest_step_, step);
  switch (record.type()) {
    case RecordType::kSpan:
    case RecordType::kGap: {
      const int64_t seq =
          progress.last_seq < 0 ? int64_t{record.seq} : widen(progress.last_seq, record.seq);
      progress.last_seq = seq;
      const int64_t parent_seq =
          record.parent_seq == 0 ? 0 : seq - static_cast<uint32_t>(record.seq - record.parent_seq);
      const uint64_t dur_ticks = record.end_ticks - record.start_ticks;
      newest_ticks_ = std::max(newest_ticks_, record.end_ticks);
      // A gap lies in no step, but its time is part of the token that the next step commits.
      const int64_t inside = record.type() == RecordType::kGap ? kNoStep : step;
      store_.add_span(
          {record.start_ticks, dur_ticks, seq, parent_seq, inside, record.detail(), track});
      const uint8_t kind = step == kNoStep         ? kOutsideSteps
                           : step == progress.step ? progress.kind
                                                   : static_cast<uint8_t>(StepKind::kOther);
      const uint64_t own_ticks = progress.own_time.end_span(seq, parent_seq, dur_ticks);
      const bool is_inside = step != kNoStep && step == progress.step;
      const double weight = is_inside && inside != kNoStep ? progress.weight : 1.0;
      progress.records += is_inside ? 1 : 0;
      aggregates_.add_span(record.detail(), kind, to_ns(dur_ticks, ns_per_tick_),
                           weight * static_cast<double>(to_ns(own_ticks, ns_per_tick_)));
      break;
    }
    case RecordType::kStepBegin: {
      const auto kind = step_kind(record.detail());
      progress.step = step;
      progress.kind = static_cast<uint8_t>(kind);
      const bool is_sampled = (record.detail() & kStepSampled) != 0;
      progress.level = -1;
      progress.weight = is_sampled ? 0 : 1;
      progress.records = 0;
      progress.unrecorded = {};
      progress.logits_ns = progress.logits_inside_ns = 0;
      if (!is_sampled) ++aggregates_.steps(kind).detailed;
      const auto rows = static_cast<uint32_t>(record.end_ticks >> 32);
      const auto query_len = static_cast<uint32_t>(record.end_ticks);
      tracker_.begin_step(
          {step, kind, rows, query_len, record.detail(), record.seq, record.start_ticks});
      if (StepRow* row = store_.begin_step(step)) {
        row->start_ticks = record.start_ticks;
        row->rows = rows;
        row->query_len = query_len;
        row->past = record.parent_seq;
        row->generation = record.seq;
        row->track = track;
        row->detail = record.detail();
      }
      break;
    }
    case RecordType::kStepDetail: {
      auto weight = std::bit_cast<double>(record.start_ticks);
      if (!(weight >= 1 && weight < kLargestWeight)) weight = 0;
      const int level = static_cast<int>(record.seq);
      if (step == progress.step) {
        const bool is_full = record.parent_seq != 0;
        progress.level = level;
        progress.exact_weight = weight;
        // Sums over steps are of those that got all there is to get.
        progress.weight = is_full ? weight : 0;
        if (is_full) ++aggregates_.steps(static_cast<StepKind>(progress.kind)).detailed;
      }
      if (StepRow* row = store_.step(step)) {
        row->inside = record.detail();
        row->weight = weight;
      }
      break;
    }
    case RecordType::kUnrecorded:
      if (step == progress.step) {
        progress.unrecorded.passed_on += static_cast<uint32_t>(record.start_ticks);
        progress.unrecorded.moved += static_cast<uint32_t>(record.end_ticks);
        progress.unrecorded.move_ticks += record.seq;
      }
      break;
    case RecordType::kStepEnd: {
      tracker_.end_step(step, record.start_ticks, record.detail());
      StepRow* row = store_.step(step);
      if (row == nullptr || !row->begun) break;
      row->end_ticks = record.start_ticks;
      const StepCost cost = StepCost::of(record.end_ticks);
      row->observe_ticks = cost.observing;
      row->detail |= record.detail() & (kStepFailed | kStepBare | kStepSeveral);
      const uint64_t dur_ticks = row->end_ticks - row->start_ticks;
      const double root_ns = root_time_ns(cost, dur_ticks);
      activity_.step_ticks += dur_ticks;
      activity_.timed_roots += root_ns > 0 ? 1 : 0;
      activity_.root_ns += root_ns;
      if (sampler_ != nullptr && progress.step == step) see_step(record, *row, root_ns, progress);
      newest_ticks_ = std::max(newest_ticks_, row->end_ticks);
      triggers_.see_step(step, step_kind(row->detail), row->end_ticks - row->start_ticks);
      break;
    }
    case RecordType::kCommit:
      tracker_.commit(step, static_cast<uint32_t>(record.end_ticks),
                      static_cast<uint32_t>(record.start_ticks),
                      (record.detail() & kCommitTotal) != 0);
      if (StepRow* row = store_.step(step)) {
        row->committed = static_cast<uint32_t>(record.end_ticks);
        row->committed_before = static_cast<uint32_t>(record.start_ticks);
        row->committed_is_total = (record.detail() & kCommitTotal) != 0;
      }
      break;
    case RecordType::kRowValid:
      tracker_.see_row(step, static_cast<uint32_t>(record.end_ticks >> 32),
                       static_cast<uint32_t>(record.end_ticks));
      store_.add_row_valid({step, static_cast<uint32_t>(record.start_ticks),
                            static_cast<uint32_t>(record.end_ticks >> 32),
                            static_cast<uint32_t>(record.end_ticks)});
      break;
    case RecordType::kRow:
      store_.add_row({step, static_cast<uint32_t>(record.start_ticks), record.seq,
                      static_cast<uint32_t>(record.end_ticks >> 32),
                      static_cast<uint32_t>(record.end_ticks), record.detail()});
      break;
    case RecordType::kRowCommit:
      tracker_.commit_row(step, static_cast<uint32_t>(record.start_ticks), record.seq,
                          static_cast<uint32_t>(record.end_ticks));
      store_.add_row_commit({step, static_cast<uint32_t>(record.start_ticks),
                             static_cast<uint32_t>(record.end_ticks >> 32),
                             static_cast<uint32_t>(record.end_ticks)});
      break;
    case RecordType::kTokenLogits:
      store_.add_token_logits(token_logits_of(record, step));
      aggregates_.logits().see(token_logits_of(record, step));
      see_logits(record, step, progress);
      break;
    case RecordType::kLogitsTime:
      see_logits(record, step, progress);
      break;
  }
}

// The last seconds are those before the last thing that ended, so that a pause loses nothing.
void Recorder::evict_locked() {
  if (options_.keep_ns != 0) {
    const double keep_ticks = static_cast<double>(options_.keep_ns) / ns_per_tick_;
    if (keep_ticks < static_cast<double>(newest_ticks_)) {
      store_.evict_before(newest_ticks_ - static_cast<uint64_t>(keep_ticks));
    }
  }
  store_.evict();
}

}  // namespace pertoken
