// How the wrappers time what a call does on its devices: a boundary in the current stream before it
// and one after it. Under the GIL, on the model's threads; hot.
#pragma once

#include <Python.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bindings/scope.h"
#include "core/recorder.h"
#include "cuda/event_timer.h"
#include "cuda/stamp_reader.h"
#include "cuda/stream_capture.h"

namespace pertoken {

// One a recording.
struct DeviceCalls {
  std::shared_ptr<cuda::EventTimer> timer;
  std::shared_ptr<cuda::StampReader> stamps;  // of what is captured into graphs
  // Graphs that torch is capturing, as far as this recording has seen it begin: calls are stamped
  // whatever the step's detail, since every replay is another step.
  uint32_t open_captures = 0;
  PyObject* current_stream = nullptr;  // f(device index) -> the current stream, as an integer
  std::array<PyObject*, kMaxDevices> indices{};  // the device indices as Python has them
  std::vector<int> devices;  // those that the model is on, that of its inputs first
};

namespace bindings {

// Whether torch is capturing a graph, as far as the recording has seen it begin.
inline bool has_open_captures(const Recorder& recorder) noexcept {
  const DeviceCalls* calls = recorder.device_calls();
  return calls != nullptr && calls->open_captures != 0;
}

// The stream that is current on a device; false, with no exception set that was not set before,
// when it cannot be told. A call into Python, in which a thread may end: neither this nor what
// calls it is noexcept (see owned.h).
bool current_stream(const DeviceCalls& calls, int device, cuda::CUstream& stream);

// What becomes of what is enqueued on a stream of the device.
cuda::StreamUse stream_use(const cuda::TimedDevice& device, cuda::CUstream stream) noexcept;
// Whether a call now, on the current stream of the device, becomes a part of a graph. One load
// where torch captures none.
bool is_call_captured(DeviceCalls& calls, ThreadBuffer& buffer, int device);

// One call on one device, from its begin() to its end(): by events, or, where the stream is being
// captured, by stamps.
class DeviceInterval {
 public:
  // Counts what cannot be recorded; never raises, and leaves an exception that is set alone.
  void begin(DeviceCalls& calls, Recorder& recorder, ThreadBuffer& buffer, int device,
             uint32_t seq);
  // `labels.parent_seq` is found out here.
  void end(DeviceCalls& calls, Recorder& recorder, cuda::SpanLabels labels);
  bool has_begun() const noexcept { return lane_ != nullptr; }
  bool has_start() const noexcept { return static_cast<bool>(start_); }

 private:
  void begin_captured(DeviceCalls& calls, cuda::CUstream stream) noexcept;
  void end_captured(DeviceCalls& calls, cuda::CUstream stream,
                    const cuda::SpanLabels& labels) noexcept;

  cuda::EventLane* lane_ = nullptr;
  cuda::Boundary start_;
  int device_ = 0;
  uint32_t seq_ = 0;
  uint32_t outer_seq_ = 0;
  cuda::CUstream outer_stream_ = nullptr;
  uint32_t parent_seq_ = 0;
  cuda::CapturedCall captured_;
  cuda::CapturedCall outer_captured_;
};

// The root's call, on each device of the model.
class DeviceIntervals {
 public:
  DeviceIntervals(Recorder& recorder, ThreadBuffer& buffer, uint32_t seq);
  void end(const cuda::SpanLabels& labels);

 private:
  DeviceCalls* calls_;
  Recorder& recorder_;
  std::array<DeviceInterval, kMaxDevices> intervals_;
};

// Of a region or a step that the user opened, and the caller holds, on the first of the model's
// devices. Ends on the thread that it began on, or not at all.
void begin_on_device(Scope& scope, int slot, Recorder& recorder, ThreadBuffer& buffer,
                     uint32_t seq);
void end_on_device(Scope& scope, int slot, Recorder& recorder, const cuda::SpanLabels& labels);
void begin_step_on_devices(Scope* scope);

// A wrapper that times the call on a device as well.
bool add_device_span_call_type(PyObject* module);

// As Recorder.time_devices(current_stream, devices): empty, or why it cannot be.
std::string time_devices(Recorder& recorder, PyObject* current_stream,
                         const std::vector<int>& devices);

// The process has another driver, on which nothing was captured. For tests.
void forget_captures() noexcept;

}  // namespace bindings
}  // namespace pertoken
