#include "cuda/stamp_reader.h"

#include <algorithm>

#include "core/record.h"
#include "cuda/driver_scope.h"

namespace pertoken::cuda {

StampReader::StampReader(std::shared_ptr<EventTimer> timer, std::shared_ptr<StampDevices> devices,
                         HostTicks ticks)
    : timer_(std::move(timer)), devices_(std::move(devices)), ticks_(ticks) {}

StampReader::~StampReader() {
  const RelaxedCapture relaxed(devices_->api());
  for (int index = 0; index < kMaxDevices; ++index) {
    Device& device = held_[static_cast<size_t>(index)];
    if (device.clock == nullptr) continue;
    devices_->find(index)->unsubscribe(&device.inbox);
    const TimedDevice* timed = timer_->device(index);
    if (timed == nullptr) continue;
    const CurrentContext current(devices_->api(), timed->context);
    if (current.result() == CUDA_SUCCESS) device.clock->destroy();
  }
}

void StampReader::start_device(int index, GraphStamps& stamps) {
  Device& device = held_[static_cast<size_t>(index)];
  if (device.clock != nullptr) return;
  auto clock = std::make_unique<StampClock>(devices_->api(), ticks_);
  stamps.subscribe(&device.inbox, &replays_);
  device.clock = std::move(clock);
}

CapturedCall StampReader::begin(int device, CUstream stream, CapturedCall outer) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    std::string reason;
    GraphStamps* stamps = devices_->make(device, reason);
    if (stamps == nullptr) {
      no_stamps_ = reason;
      return {};
    }
    start_device(device, *stamps);
    StampId start;
    if (stamps->stamp(stream, false, start) != CUDA_SUCCESS) return {};
    Graph& graph = graphs_[{device, word_of(start.graph)}];
    if (graph.number != start.graph) graph = {start.graph, {}};
    auto& calls = graph.calls;
    uint32_t parent = kNone32;
    if (outer.graph == start.graph && calls.at(outer.call).stream == stream) parent = outer.call;
    const uint64_t branch = branch_of(calls, stream);
    calls.push_back({start.ordinal, 0, parent, kNoSite, 0, stream, branch, false, false});
    return {start.graph, static_cast<uint32_t>(calls.size()) - 1};
  } catch (...) {
    return {};
  }
}

// 0 for the stream of the first call. The driver's number of a stream that is being captured cannot
// be asked for: that would end the capture.
uint64_t StampReader::branch_of(std::span<const Call> calls, CUstream stream) noexcept {
  if (calls.empty()) return 0;
  uint64_t last = 0;
  for (const Call& call : calls) {
    if (call.stream == stream) return call.branch;
    last = std::max(last, call.branch);
  }
  return last + 1;
}

bool StampReader::end(int device, CapturedCall call, CUstream stream,
                      const SpanLabels& labels) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    GraphStamps* stamps = devices_->find(device);
    Graph& graph = graphs_.at({device, word_of(call.graph)});
    if (graph.number != call.graph) return false;
    Call& captured = graph.calls.at(call.call);
    StampId end;
    if (stamps == nullptr || captured.stream != stream) return false;
    if (stamps->stamp(stream, true, end) != CUDA_SUCCESS || end.graph != call.graph) return false;
    captured.end = end.ordinal;
    captured.site = labels.site;
    captured.left_out = labels.left_out;
    captured.is_whole = labels.site != kNoSite;
    captured.is_root = labels.is_step;
    return true;
  } catch (...) {
    return false;
  }
}

const StampReader::Graph* StampReader::find_graph(int device, uint32_t number) const noexcept {
  const auto found = graphs_.find({device, word_of(number)});
  return found == graphs_.end() || found->second.number != number ? nullptr : &found->second;
}

uint32_t StampReader::calls_of(int device, uint32_t graph) {
  const std::lock_guard lock(mutex_);
  const Graph* known = find_graph(device, graph);
  if (known == nullptr) return 0;
  const bool has_inner =
      std::any_of(known->calls.begin(), known->calls.end(),
                  [](const Call& call) { return call.is_whole && !call.is_root; });
  return has_inner ? static_cast<uint32_t>(known->calls.size()) : 0;
}

void StampReader::read_replays() {
  replays_.read([&](const StampedReplay& replay, uint64_t index) { take_replay(replay, index); });
}

void StampReader::take_replay(const StampedReplay& replay, uint64_t index) {
  Device& device = held_[static_cast<size_t>(replay.device)];
  if (replay.is_withdrawn) {
    std::erase_if(device.awaited, [&](const Awaited& awaited) {
      return awaited.replay.graph == replay.graph && awaited.replay.number == replay.number;
    });
    return;
  }
  GraphStamps* stamps = devices_->find(replay.device);
  const uint32_t count = stamps == nullptr ? 0 : stamps->stamps_of(replay.graph);
  if (count == 0 || device.awaited.size() >= kMaxAwaited) {
    overwritten_ += expected(replay);
    return;
  }
  device.awaited.push_back(
      {replay, index, std::vector<uint64_t>(count), 0, count, false, false, false, {}});
}

// Up to the oldest one that is awaited still, on any device.
void StampReader::settle_replays() noexcept {
  uint64_t settled = replays_.taken();
  for (const Device& device : held_) {
    if (!device.awaited.empty()) settled = std::min(settled, device.awaited.front().index);
  }
  replays_.settle(settled);
}

void StampReader::take_stamp(Device& device, const StampPlace& place, uint64_t whole_ns) {
  if (place.graph == 0) return device.clock->see(place, whole_ns);
  for (Awaited& awaited : device.awaited) {
    if (word_of(awaited.replay.graph) != place.graph || awaited.replay.number != place.replay)
      continue;
    if (place.ordinal >= awaited.times_ns.size()) return;
    uint64_t& time_ns = awaited.times_ns[place.ordinal];
    if (time_ns != 0) {
      awaited.is_spoilt = true;
      return;
    }
    time_ns = whole_ns;
    awaited.latest_ns = std::max(awaited.latest_ns, whole_ns);
    if (--awaited.missing != 0) return;
    // Replays of one graph never overlap: what is missing of an earlier one does not come any more.
    for (Awaited& earlier : device.awaited) {
      if (&earlier == &awaited) return;
      if (earlier.replay.graph == awaited.replay.graph) earlier.is_passed = true;
    }
  }
}

// The replay's own span among those that its events gave in this round.
void StampReader::find_spans(Device& device, std::vector<DeviceSpan>& spans) {
  for (const DeviceSpan& span : spans) {
    for (Awaited& awaited : device.awaited) {
      if (span.seq != awaited.replay.seq || span.track != awaited.replay.track ||
          span.device != awaited.replay.device) {
        continue;
      }
      awaited.span = span;
      awaited.has_span = true;
    }
  }
}

std::span<const StampReader::Call> StampReader::calls_in(
    const StampedReplay& replay) const noexcept {
  const Graph* graph = find_graph(replay.device, replay.graph);
  return graph == nullptr ? std::span<const Call>() : std::span<const Call>(graph->calls);
}

uint64_t StampReader::expected(const StampedReplay& replay) const {
  const auto calls = calls_in(replay);
  return static_cast<uint64_t>(std::count_if(calls.begin(), calls.end(), [&](const Call& call) {
    return call.is_whole && (call.left_out & replay.left_out) == 0;
  }));
}

// Where a stamp lies on the host's ticks, inside the replay's own span: by the clocks' error it
// could seem to stick out. 0 for one that is not there, or so far outside that it is not of this
// replay.
uint64_t StampReader::place(Device& device, uint64_t whole_ns, const DeviceSpan& replay,
                            TimedDevice& timed, double ns_per_tick) {
  if (whole_ns == 0) return 0;
  const int64_t device_ns = device.clock->device_ns(whole_ns);
  const int64_t error_ns =
      device.clock->error_ns(whole_ns) + timed.clock.error_ns(device_ns, ns_per_tick);
  clock_error_ns_ = std::max(clock_error_ns_, error_ns);
  const uint64_t ticks = timed.clock.to_ticks(device_ns);
  const auto error_ticks = static_cast<uint64_t>(static_cast<double>(error_ns) / ns_per_tick) + 1;
  if (ticks + error_ticks < replay.start_ticks || ticks > replay.end_ticks + error_ticks) return 0;
  return std::clamp(ticks, replay.start_ticks, replay.end_ticks);
}

void StampReader::add_spans(Device& device, const Awaited& awaited, TimedDevice& timed,
                            double ns_per_tick, std::vector<DeviceSpan>& spans) {
  const StampedReplay& replay = awaited.replay;
  const auto calls = calls_in(replay);
  const auto is_wanted = [&](const Call& call) {
    return call.is_whole && (call.left_out & replay.left_out) == 0;
  };
  std::vector<uint64_t> ticks(awaited.times_ns.size());
  for (size_t i = 0; i < ticks.size(); ++i) {
    ticks[i] = place(device, awaited.times_ns[i], awaited.span, timed, ns_per_tick);
  }
  const auto is_known = [&](const Call& call) {
    return ticks[call.start] != 0 && ticks[call.end] != 0;
  };
  for (size_t i = 0; i < calls.size(); ++i) {
    const Call& call = calls[i];
    if (!is_wanted(call)) continue;
    if (!is_known(call)) {
      ++overwritten_;
      continue;
    }
    const bool is_on_own = call.branch != 0;
    uint32_t parent = call.parent;
    while (parent != kNone32 && !(is_wanted(calls[parent]) && is_known(calls[parent]))) {
      parent = calls[parent].parent;
    }
    DeviceSpan span = awaited.span;
    span.start_ticks = ticks[call.start];
    span.end_ticks = std::max(ticks[call.end], span.start_ticks);
    span.site = call.site;
    span.seq = replay.first_seq + static_cast<uint32_t>(i);
    span.parent_seq = parent != kNone32 ? replay.first_seq + parent : is_on_own ? 0 : replay.seq;
    span.step = replay.step;
    if (is_on_own) span.stream = kFirstBranch + call.branch;
    span.idle_ticks = 0;
    span.is_step = false;
    spans.push_back(span);
  }
}

// Whether nothing more is to come of it.
bool StampReader::settle(Device& device, Awaited& awaited, TimedDevice& timed, double ns_per_tick,
                         std::vector<DeviceSpan>& spans) {
  if (!timed.is_alive.load(std::memory_order_relaxed)) {
    failed_ += expected(awaited.replay);
    return true;
  }
  const bool has_all = awaited.missing == 0 || awaited.is_passed;
  if (has_all && awaited.is_spoilt) {
    overwritten_ += expected(awaited.replay);
    return true;
  }
  if (has_all && awaited.has_span && device.clock->can_place(awaited.latest_ns)) {
    add_spans(device, awaited, timed, ns_per_tick, spans);
    return true;
  }
  const double age_ns = static_cast<double>(ticks_() - awaited.replay.ticks) * ns_per_tick;
  if (age_ns <= static_cast<double>(kLateNs)) return false;
  late_ += expected(awaited.replay);
  return true;
}

void StampReader::collect_device(int index, Device& device, GraphStamps& stamps, double ns_per_tick,
                                 std::vector<DeviceSpan>& spans) {
  TimedDevice* timed = timer_->device(index);
  if (timed == nullptr) return;
  const CurrentContext current(devices_->api(), timed->context);
  if (current.result() != CUDA_SUCCESS) timed->fail(current.result());
  stamps.read(device.inbox, stamps_);
  // A stamp comes after the announcement of its replay, by way of the GPU; the announcements must
  // be read after it here, too.
  std::atomic_thread_fence(std::memory_order_acquire);
  read_replays();
  for (const StampInbox::Stamp& stamp : stamps_) {
    take_stamp(device, stamp.place, device.clock->whole_ns(stamp.time_ns, ns_per_tick));
  }
  find_spans(device, spans);
  const bool needs_clock = !device.awaited.empty() || !device.clock->is_ready();
  if (needs_clock && timed->is_alive.load(std::memory_order_relaxed)) {
    const CUresult result = device.clock->keep(stamps, timed->clock, ns_per_tick);
    // Without memory it is only later: the next round tries again.
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_OUT_OF_MEMORY) timed->fail(result);
  }
  std::erase_if(device.awaited, [&](Awaited& awaited) {
    return settle(device, awaited, *timed, ns_per_tick, spans);
  });
}

void StampReader::collect(double ns_per_tick, std::vector<DeviceSpan>& spans) {
  const std::lock_guard lock(mutex_);
  if (graphs_.empty()) return;
  const RelaxedCapture relaxed(devices_->api());
  for (int index = 0; index < kMaxDevices; ++index) {
    Device& device = held_[static_cast<size_t>(index)];
    if (device.clock == nullptr) continue;
    collect_device(index, device, *devices_->find(index), ns_per_tick, spans);
  }
  settle_replays();
}

bool StampReader::is_pending() {
  const std::lock_guard lock(mutex_);
  return !replays_.is_read() || std::any_of(held_.begin(), held_.end(), [](const Device& device) {
    return !device.awaited.empty();
  });
}

uint64_t StampReader::drop_awaited(Device& device) {
  uint64_t spans = 0;
  for (const Awaited& awaited : device.awaited) spans += expected(awaited.replay);
  device.awaited.clear();
  return spans;
}

void StampReader::give_up() noexcept {
  const std::lock_guard lock(mutex_);
  read_replays();
  for (Device& device : held_) late_ += drop_awaited(device);
  settle_replays();
}

DeviceLosses StampReader::losses() {
  const std::lock_guard lock(mutex_);
  DeviceLosses losses;
  losses.no_event = no_room_.load(std::memory_order_relaxed);
  losses.stream_changed = other_stream_.load(std::memory_order_relaxed);
  losses.bare_replays = bare_replays_.load(std::memory_order_relaxed);
  losses.late = late_;
  losses.failed = failed_;
  losses.overwritten = overwritten_;
  for (const Device& device : held_) {
    for (const Awaited& awaited : device.awaited) losses.pending += expected(awaited.replay);
  }
  losses.clock_error_ns = clock_error_ns_;
  losses.no_stamps = no_stamps_;
  return losses;
}

}  // namespace pertoken::cuda
