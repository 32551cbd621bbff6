#include "cuda/event_lane.h"

#include <algorithm>

#include "cuda/driver_scope.h"
#include "cuda/stream_capture.h"

namespace pertoken::cuda {

EventLane::EventLane(TimedDevice& device, HostTicks ticks, int32_t track, uint32_t max_events)
    : device_(device),
      ticks_(ticks),
      track_(track),
      pool_(max_events),
      ring_(size_t{4} * max_events) {}

// Nothing may be recorded, created or asked for on a stream that is being captured: the record
// would become an edge of somebody's graph. The legacy stream answers so while any other captures.
bool EventLane::may_record(CUstream stream, Boundary& refused) noexcept {
  CUresult result = CUDA_SUCCESS;
  switch (stream_use(device_.api, stream, result)) {
    case StreamUse::kRuns:
      return true;
    case StreamUse::kCaptured:
      refused.slot = Boundary::kInCapture;
      break;
    case StreamUse::kBarred:
      count(in_capture_);
      break;
    case StreamUse::kFailed:
      count_failure(result);
      break;
  }
  return false;
}

// A stream that is none, or of another context, harms itself alone.
void EventLane::count_failure(CUresult result) noexcept {
  if (result != CUDA_ERROR_INVALID_HANDLE) device_.fail(result);
  count(failed_on_thread_);
}

// The thread's, of a stream on which it records now: later the stream may be captured or gone, and
// then the driver must not be asked.
uint64_t EventLane::number_of(CUstream stream) noexcept {
  if (stream_number_ != 0 && stream == numbered_stream_) return stream_number_;
  unsigned long long number = 0;
  if (device_.api.cuStreamGetId(stream, &number) != CUDA_SUCCESS) number = 0;
  numbered_stream_ = stream;
  stream_number_ = number;
  return number;
}

// A kernel cannot be launched in less than share_ticks, so that within it the last boundary of the
// same stream is this one, too. The event of the last boundary is kept for that by one reference.
Boundary EventLane::mark(CUstream stream) noexcept {
  const uint64_t now = ticks_();
  if (latest_ && pool_[latest_.slot].stream == stream &&
      now - latest_done_ticks_ <= device_.share_ticks.load(std::memory_order_relaxed)) {
    pool_.add_reference(latest_.slot);
    return latest_;
  }
  if (!device_.is_alive.load(std::memory_order_relaxed)) {
    count(failed_on_thread_);
    return {};
  }
  // The default stream is that of the current context, which need not be this device's.
  const CurrentContext current(device_.api, device_.context);
  if (current.result() != CUDA_SUCCESS) {
    device_.fail(current.result());
    count(failed_on_thread_);
    return {};
  }
  Boundary refused;
  if (!may_record(stream, refused)) return refused;
  const uint32_t taken = pool_.take();
  if (taken == Boundary::kNone) {
    count(no_event_);
    return {};
  }
  EventSlot& slot = pool_[taken];
  slot.stream = stream;
  slot.stream_number = number_of(stream);
  slot.record_ticks = now;
  const CUresult result = device_.api.cuEventRecord(slot.event, stream);
  if (result != CUDA_SUCCESS) {
    pool_.give_back(taken);
    if (result == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) {
      count(in_capture_);
    } else {
      count_failure(result);
    }
    return {};
  }
  if (latest_) pool_.drop(latest_.slot);
  latest_ = {taken, slot.generation};
  pool_.add_reference(taken);
  pool_.add_reference(taken);
  if (!ring_.try_push({{}, latest_, 0, 0, 0, 0})) pool_.drop(taken);
  latest_done_ticks_ = ticks_();
  return latest_;
}

Boundary EventLane::begin(CUstream stream) noexcept { return mark(stream); }

void EventLane::end(Boundary start, CUstream stream, const SpanLabels& labels) noexcept {
  if (!start) return;  // counted when it was tried
  if (pool_[start.slot].stream != stream) {
    count(stream_changed_);
    pool_.drop(start.slot);
    return;
  }
  const Boundary end = mark(stream);
  if (!end) {
    if (end.is_in_capture()) count(in_capture_);
    pool_.drop(start.slot);
    return;
  }
  const uint32_t tag = (labels.site & kSiteMask) | (labels.is_step ? kStepBit : 0);
  if (ring_.try_push({start, end, tag, labels.seq, labels.parent_seq, labels.step})) return;
  count(no_event_);
  pool_.drop(start.slot);
  pool_.drop(end.slot);
}

void EventLane::read_ring() {
  for (auto messages = ring_.readable(); !messages.empty(); messages = ring_.readable()) {
    for (const Message& message : messages) {
      if (pending_.size() < kMaxPending) {
        pending_.push_back(message);
        continue;
      }
      if (message.start) ++unfit_;
      drop(message);
    }
    ring_.release(messages.size());
  }
}

EventLane::Stream& EventLane::stream_state(const EventSlot& slot) {
  for (Stream& known : streams_) {
    if (known.stream == slot.stream && known.number == slot.stream_number) return known;
  }
  if (streams_.size() == kMaxStreams) streams_.erase(streams_.begin());
  return streams_.emplace_back(Stream{slot.stream, slot.stream_number, 0});
}

// Reads a completed boundary, once. False when the device has failed.
bool EventLane::resolve(EventSlot& slot, double ns_per_tick) {
  if (slot.resolved_generation == slot.generation) return true;
  int64_t device_ns = 0;
  const CUresult result = device_.clock.locate(slot.event, slot.record_ticks, device_ns);
  if (result != CUDA_SUCCESS) {
    device_.fail(result);
    return false;
  }
  // Boundaries come in their order; by different anchors they could be some nanoseconds out of it.
  // One that was reported ready after those behind it keeps its own time.
  Stream& stream = stream_state(slot);
  if (stream.last_ns - device_ns <= kOrderNs) device_ns = std::max(stream.last_ns, device_ns);
  stream.last_ns = std::max(stream.last_ns, device_ns);
  slot.device_ns = device_ns;
  slot.device_ticks = device_.clock.to_ticks(slot.device_ns);
  slot.resolved_generation = slot.generation;
  const int64_t error_ns = device_.clock.error_ns(slot.device_ns, ns_per_tick);
  device_.clock_error_ns = std::max(device_.clock_error_ns, error_ns);
  const auto slack_ns = static_cast<double>(std::min(error_ns, kCaughtUpNs) + kCaughtUpNs);
  const double behind_ns =
      static_cast<double>(static_cast<int64_t>(slot.device_ticks - slot.record_ticks)) *
      ns_per_tick;
  if (reached_.size() < kMaxReached) {
    reached_.push_back({slot.device_ns, slot.device_ticks, slot.stream, behind_ns <= slack_ns});
  }
  return true;
}

// The intervals between boundaries at whose end the device had caught up with the host: only in
// those can it have waited for work.
uint64_t EventLane::idle_ticks(const EventSlot& start, const EventSlot& end) {
  uint64_t idle = 0;
  const Reached* before = nullptr;
  std::erase_if(reached_, [&](const Reached& reached) {
    return reached.stream == start.stream && reached.device_ns < start.device_ns;
  });
  std::stable_sort(reached_.begin(), reached_.end(),
                   [](const Reached& a, const Reached& b) { return a.device_ns < b.device_ns; });
  for (const Reached& reached : reached_) {
    if (reached.stream != start.stream || reached.device_ns > end.device_ns) continue;
    if (before != nullptr && reached.has_caught_up) {
      idle += reached.device_ticks - before->device_ticks;
    }
    before = &reached;
  }
  return idle;
}

DeviceSpan EventLane::span_of(const Message& message) {
  const EventSlot& start = pool_[message.start.slot];
  const EventSlot& end = pool_[message.end.slot];
  const bool is_step = (message.tag & kStepBit) != 0;
  DeviceSpan span{};
  span.start_ticks = start.device_ticks;
  span.end_ticks = end.device_ticks;
  span.site = message.tag & kSiteMask;
  span.seq = message.seq;
  span.parent_seq = message.parent_seq;
  span.step = message.step;
  span.stream = start.stream_number;
  span.track = track_;
  span.device = static_cast<int16_t>(device_.index);
  span.is_step = is_step;
  if (is_step) {
    span.idle_ticks = idle_ticks(start, end);
    std::erase_if(reached_, [&](const Reached& reached) {
      return reached.stream == start.stream && reached.device_ns < end.device_ns;
    });
  }
  return span;
}

// Of one stream nothing after what is not ready is ready; other streams go on.
bool EventLane::is_reached(const EventSlot& slot) {
  if (slot.resolved_generation == slot.generation) return true;
  if (!device_.clock.is_ready()) return false;
  if (std::find(waiting_.begin(), waiting_.end(), slot.stream) != waiting_.end()) return false;
  const CUresult result = device_.api.cuEventQuery(slot.event);
  if (result == CUDA_ERROR_NOT_READY) {
    waiting_.push_back(slot.stream);
  } else if (result != CUDA_SUCCESS) {
    device_.fail(result);
  }
  return result == CUDA_SUCCESS;
}

bool EventLane::take(const Message& message, uint64_t now, double ns_per_tick,
                     std::vector<DeviceSpan>& spans) {
  EventSlot& end = pool_[message.end.slot];
  EventSlot& start = message.start ? pool_[message.start.slot] : end;
  if (end.generation != message.end.generation ||
      (message.start && start.generation != message.start.generation)) {
    ++failed_;  // recorded again before it was read: references forbid it
    return true;
  }
  if (is_reached(end) && resolve(start, ns_per_tick) && resolve(end, ns_per_tick)) {
    if (message.start) spans.push_back(span_of(message));
    return true;
  }
  const bool is_alive = device_.is_alive.load(std::memory_order_relaxed);
  const double age_ns = static_cast<double>(now - end.record_ticks) * ns_per_tick;
  if (is_alive && age_ns <= static_cast<double>(kLateNs)) return false;
  if (message.start) ++(is_alive ? late_ : failed_);
  return true;
}

void EventLane::collect(double ns_per_tick, std::vector<DeviceSpan>& spans) {
  read_ring();
  if (!device_.is_alive.load(std::memory_order_relaxed)) {
    failed_ += drop_pending();
    return;
  }
  const uint64_t now = ticks_();
  waiting_.clear();
  size_t kept = 0;
  for (const Message& message : pending_) {
    if (take(message, now, ns_per_tick, spans)) {
      drop(message);
    } else {
      pending_[kept++] = message;
    }
  }
  pending_.resize(kept);
}

uint64_t EventLane::drop_pending() noexcept {
  uint64_t spans = 0;
  for (const Message& message : pending_) {
    if (message.start) ++spans;
    drop(message);
  }
  pending_.clear();
  return spans;
}

void EventLane::give_up() noexcept {
  late_ += drop_pending();
  for (auto messages = ring_.readable(); !messages.empty(); messages = ring_.readable()) {
    for (const Message& message : messages) {
      if (message.start) ++late_;
      drop(message);
    }
    ring_.release(messages.size());
  }
}

void EventLane::add_losses(DeviceLosses& losses) const noexcept {
  losses.no_event += no_event_.load(std::memory_order_relaxed) + unfit_;
  losses.in_capture += in_capture_.load(std::memory_order_relaxed);
  losses.stream_changed += stream_changed_.load(std::memory_order_relaxed);
  losses.failed += failed_on_thread_.load(std::memory_order_relaxed) + failed_;
  losses.late += late_;
  losses.pending += static_cast<uint64_t>(
      std::count_if(pending_.begin(), pending_.end(),
                    [](const Message& message) { return static_cast<bool>(message.start); }));
}

uint64_t EventLane::oldest_record_ticks(uint64_t otherwise) noexcept {
  uint64_t oldest = otherwise;
  for (const Message& message : pending_) {
    const Boundary first = message.start ? message.start : message.end;
    oldest = std::min(oldest, pool_[first.slot].record_ticks);
  }
  return oldest;
}

void EventLane::destroy() noexcept { pool_.destroy(device_.api); }

}  // namespace pertoken::cuda
