#include "fake_driver.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace pertoken::testing {

using namespace cuda;

uint64_t fake_thread() {
  static std::atomic<uint64_t> last{0};
  static thread_local const uint64_t number = last.fetch_add(1, std::memory_order_relaxed) + 1;
  return number;
}

FakeDriver::FakeDriver(int devices) {
  fake = this;
  for (int i = 0; i < devices; ++i) {
    contexts_.push_back(new_handle<CUcontext>());
    Stream stream;
    stream.device = i;
    stream.id = next_id_++;
    default_streams_.push_back(std::move(stream));
  }
  fill_calls(api_);
  fill_graph_calls(api_);
  fill_memory_calls(api_);
  set_current(0);
}

FakeDriver::~FakeDriver() {
  for (const auto& [object, held] : objects_) held.destroy(held.of_user);
  context_stack.clear();
  fake = nullptr;
}

int64_t FakeDriver::now_ns() {
  const std::lock_guard lock(mutex_);
  return clock_ ? clock_() : now_ns_;
}

int64_t FakeDriver::advance_locked(int64_t ns) {
  if (!clock_) now_ns_ += ns;
  run_due();
  return clock_ ? clock_() : now_ns_;
}

void FakeDriver::advance(int64_t ns) {
  const std::lock_guard lock(mutex_);
  advance_locked(ns);
}

uint64_t FakeDriver::ticks() {
  return static_cast<uint64_t>(static_cast<double>(fake->now_ns()) * kTicksPerNs);
}

void FakeDriver::set_device_clock(double drift, int64_t offset_ns, int64_t resolution_ns) {
  drift_ = drift;
  device_offset_ns_ = offset_ns;
  resolution_ns_ = resolution_ns;
}

int64_t FakeDriver::device_ns(int64_t at_ns) const {
  const auto stretched =
      static_cast<int64_t>(std::floor(static_cast<long double>(at_ns) * (1.0L + drift_)));
  return (stretched + device_offset_ns_) / resolution_ns_ * resolution_ns_;
}

CUcontext FakeDriver::context(int device) const {
  return contexts_.at(static_cast<size_t>(device));
}

void FakeDriver::set_current(int device) {
  context_stack.clear();
  if (device >= 0) context_stack.push_back(context(device));
}

int FakeDriver::current_device() const {
  if (context_stack.empty()) return -1;
  const auto found = std::find(contexts_.begin(), contexts_.end(), context_stack.back());
  return found == contexts_.end() ? -1 : static_cast<int>(found - contexts_.begin());
}

CUresult FakeDriver::enter(const char* symbol) {
  advance_locked(call_cost_ns_);
  ++calls_[symbol];
  if (sticky_ != CUDA_SUCCESS) return sticky_;
  const auto found = faults_.find(symbol);
  if (found == faults_.end() || faults_paused_) return CUDA_SUCCESS;
  Fault& fault = found->second;
  if (fault.after > 0) {
    --fault.after;
    return CUDA_SUCCESS;
  }
  const CUresult result = fault.result;
  if (--fault.count == 0) faults_.erase(found);
  return result;
}

void FakeDriver::fail(const std::string& symbol, CUresult result, int count, int after) {
  const std::lock_guard lock(mutex_);
  faults_[symbol] = {result, count, after};
}

uint64_t FakeDriver::calls(const std::string& symbol) {
  const std::lock_guard lock(mutex_);
  return calls_[symbol];
}

FakeDriver::Stream* FakeDriver::find(CUstream stream) {
  if (stream == nullptr) {
    const int device = current_device();
    if (device < 0 || gone_.contains(device)) return nullptr;
    return &default_streams_[static_cast<size_t>(device)];
  }
  const auto found = streams_.find(stream);
  if (found == streams_.end() || gone_.contains(found->second.device)) return nullptr;
  return &found->second;
}

FakeDriver::Event* FakeDriver::find(CUevent event) {
  const auto found = events_.find(event);
  if (found == events_.end()) {
    count_misuse();
    return nullptr;
  }
  return gone_.contains(found->second.device) ? nullptr : &found->second;
}

void FakeDriver::wait_for(CUstream waiting, CUstream awaited) {
  CUevent reached = nullptr;
  api_.cuEventCreate(&reached, CU_EVENT_DISABLE_TIMING);
  api_.cuEventRecord(reached, awaited);
  api_.cuStreamWaitEvent(waiting, reached, 0);
  api_.cuEventDestroy_v2(reached);
}

void FakeDriver::invalidate(Stream& stream) {
  stream.capture = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
  ++captures_broken_;
}

bool FakeDriver::breaks_capture() {
  if (capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
  bool broke = false;
  const auto look = [&](Stream& stream) {
    if (stream.capture != CU_STREAM_CAPTURE_STATUS_ACTIVE) return;
    const bool own = stream.capturing_thread == fake_thread();
    const bool forbidden = stream.capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL
                               ? own || capture_mode == CU_STREAM_CAPTURE_MODE_GLOBAL
                               : stream.capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED && own;
    if (!forbidden) return;
    invalidate(stream);
    broke = true;
  };
  for (auto& [handle, stream] : streams_) look(stream);
  return broke;
}

int64_t FakeDriver::duration_of(const FakeWork& work) const {
  if (work.type != CU_GRAPH_NODE_TYPE_KERNEL) return 0;
  const auto function = functions_.find(work.function);
  return function == functions_.end() ? work.duration_ns
                                      : kernels_.at(function->second.name).duration_ns;
}

void FakeDriver::enqueue(Stream& stream, FakeWork work, int64_t duration_ns, int64_t at_ns) {
  Pending pending{std::move(work), duration_ns, 0};
  if (pending.work.event != nullptr) {
    Event& event = events_.at(pending.work.event);
    event.recorded = true;
    event.time_ns = kNever;
    pending.generation = ++event.generation;
  }
  if (stream.held) {
    stream.behind_hold.push_back(std::move(pending));
  } else {
    start(stream, std::move(pending), at_ns);
  }
}

void FakeDriver::start(Stream& stream, Pending pending, int64_t at_ns) {
  FakeWork& work = pending.work;
  const auto launched = execs_.find(work.launched);
  int64_t start_ns = std::max(at_ns + launch_latency_ns_, stream.free_at_ns);
  if (launched != execs_.end()) start_ns = std::max(start_ns, launched->second.free_at_ns);
  stream.free_at_ns = start_ns + pending.duration_ns;
  if (launched != execs_.end()) launched->second.free_at_ns = stream.free_at_ns;
  if (work.event != nullptr) {
    const auto event = events_.find(work.event);
    if (event != events_.end() && event->second.generation == pending.generation) {
      event->second.time_ns = start_ns;
    }
    return;
  }
  if (work.effect) {
    effects_.insert({start_ns, next_effect_++, work.effect});
    return;
  }
  const auto function = functions_.find(work.function);
  if (function == functions_.end()) return;
  const FakeKernel& kernel = kernels_.at(function->second.name);
  if (!kernel.body) return;
  effects_.insert(
      {start_ns, next_effect_++, [this, start_ns, work = std::move(work), body = kernel.body] {
         const FakeLaunch launch{static_cast<uint64_t>(device_ns(start_ns)),
                                 start_ns,
                                 {work.grid[0], work.grid[1], work.grid[2]},
                                 {work.block[0], work.block[1], work.block[2]},
                                 work.parameters};
         body(launch);
       }});
}

void FakeDriver::run_due() {
  const int64_t now = clock_ ? clock_() : now_ns_;
  while (!effects_.empty() && effects_.begin()->at_ns <= now) {
    const auto run = effects_.begin()->run;
    effects_.erase(effects_.begin());
    run();
  }
}

void FakeDriver::spin(CUstream stream, int64_t duration_ns, int device) {
  const std::lock_guard lock(mutex_);
  advance_locked(kLaunchCostNs);
  Stream& target =
      stream == nullptr ? default_streams_.at(static_cast<size_t>(device)) : streams_.at(stream);
  FakeWork work;
  work.duration_ns = duration_ns;
  if (target.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE) {
    capture(target, std::move(work));
  } else {
    enqueue(target, std::move(work), duration_ns, now_ns());
  }
}

void FakeDriver::hold(CUstream stream, int device) {
  const std::lock_guard lock(mutex_);
  advance_locked(kLaunchCostNs);  // of whatever it is that does not end
  Stream& target =
      stream == nullptr ? default_streams_.at(static_cast<size_t>(device)) : streams_.at(stream);
  target.held = true;
}

void FakeDriver::release(CUstream stream, int device) {
  const std::lock_guard lock(mutex_);
  Stream& target =
      stream == nullptr ? default_streams_.at(static_cast<size_t>(device)) : streams_.at(stream);
  target.held = false;
  const int64_t at_ns = now_ns();
  while (!target.behind_hold.empty()) {
    start(target, std::move(target.behind_hold.front()), at_ns);
    target.behind_hold.pop_front();
  }
}

void FakeDriver::destroy_context(int device) {
  const std::lock_guard lock(mutex_);
  gone_.insert(device);
  // With the context goes what was allocated in it, host memory included; tests that do this have
  // one device with any.
  effects_.clear();
  std::erase_if(allocations_, [](const auto& held) { return held.second.is_host; });
}

int64_t FakeDriver::event_time_ns(CUevent event) {
  const std::lock_guard lock(mutex_);
  return events_.at(event).time_ns;
}

size_t FakeDriver::live_events() {
  const std::lock_guard lock(mutex_);
  return events_.size();
}

size_t FakeDriver::live_streams() {
  const std::lock_guard lock(mutex_);
  return streams_.size();
}

}  // namespace pertoken::testing
