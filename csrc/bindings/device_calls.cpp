#include "bindings/device_calls.h"

#include <structmember.h>

#include <algorithm>
#include <new>
#include <string>

#include "bindings/opener.h"
#include "bindings/span_call.h"
#include "cuda/driver_scope.h"
#include "cuda/kernel_image.h"

namespace pertoken::bindings {

bool current_stream(const DeviceCalls& calls, int device, cuda::CUstream& stream) {
  PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* index = calls.indices[static_cast<size_t>(device)];
  PyObject* result = PyObject_CallOneArg(calls.current_stream, index);
  void* handle = result == nullptr ? nullptr : PyLong_AsVoidPtr(result);
  Py_XDECREF(result);
  const bool is_known = PyErr_Occurred() == nullptr;
  if (!is_known) PyErr_Clear();
  PyErr_Restore(type, value, traceback);
  stream = static_cast<cuda::CUstream>(handle);
  return is_known;
}

cuda::StreamUse stream_use(const cuda::TimedDevice& device, cuda::CUstream stream) noexcept {
  const cuda::CurrentContext current(device.api, device.context);
  if (current.result() != cuda::CUDA_SUCCESS) return cuda::StreamUse::kFailed;
  cuda::CUresult result = cuda::CUDA_SUCCESS;
  return cuda::stream_use(device.api, stream, result);
}

bool is_call_captured(DeviceCalls& calls, ThreadBuffer& buffer, int device) {
  if (calls.open_captures == 0) return false;
  cuda::EventLane* lane = calls.timer->lane(buffer, device);
  cuda::CUstream stream = nullptr;
  return lane != nullptr && current_stream(calls, device, stream) &&
         stream_use(lane->device(), stream) == cuda::StreamUse::kCaptured;
}

void DeviceInterval::begin_captured(DeviceCalls& calls, cuda::CUstream stream) noexcept {
  const cuda::TimedDevice& device = lane_->device();
  const cuda::CurrentContext current(device.api, device.context);
  if (current.result() == cuda::CUDA_SUCCESS) {
    captured_ = calls.stamps->begin(device_, stream, lane_->open_captured);
  }
  if (!captured_) return lane_->count_in_capture();
  outer_captured_ = lane_->open_captured;
  lane_->open_captured = captured_;
}

void DeviceInterval::end_captured(DeviceCalls& calls, cuda::CUstream stream,
                                  const cuda::SpanLabels& labels) noexcept {
  const cuda::TimedDevice& device = lane_->device();
  const cuda::CurrentContext current(device.api, device.context);
  const bool is_stamped = current.result() == cuda::CUDA_SUCCESS &&
                          calls.stamps->end(device_, captured_, stream, labels);
  if (!is_stamped) lane_->count_in_capture();
  lane_->open_captured = outer_captured_;
}

void DeviceInterval::begin(DeviceCalls& calls, Recorder& recorder, ThreadBuffer& buffer, int device,
                           uint32_t seq) {
  cuda::CUstream stream = nullptr;
  if (!current_stream(calls, device, stream)) {
    recorder.count_fault();
    return;
  }
  lane_ = calls.timer->lane(buffer, device);
  if (lane_ == nullptr) return;
  device_ = device;
  start_ = lane_->begin(stream);
  outer_seq_ = lane_->open_seq;
  outer_stream_ = lane_->open_stream;
  parent_seq_ = outer_stream_ == stream ? outer_seq_ : 0;
  seq_ = seq;
  if (start_.is_in_capture()) begin_captured(calls, stream);
  if (!start_) return;
  lane_->open_seq = seq;
  lane_->open_stream = stream;
}

void DeviceInterval::end(DeviceCalls& calls, Recorder& recorder, cuda::SpanLabels labels) {
  if (lane_ == nullptr) return;
  // Generators close regions in any order.
  const bool is_innermost = lane_->open_seq == seq_;
  if (start_) {
    cuda::CUstream stream = nullptr;
    // A stream that cannot be told is no stream of ours, and counts as another one.
    if (!current_stream(calls, device_, stream)) recorder.count_fault();
    labels.parent_seq = parent_seq_;
    lane_->end(start_, stream, labels);
  } else if (captured_) {
    cuda::CUstream stream = nullptr;
    if (!current_stream(calls, device_, stream)) recorder.count_fault();
    end_captured(calls, stream, labels);
  }
  if (is_innermost) {
    lane_->open_seq = outer_seq_;
    lane_->open_stream = outer_stream_;
  }
  lane_ = nullptr;
}

DeviceIntervals::DeviceIntervals(Recorder& recorder, ThreadBuffer& buffer, uint32_t seq)
    : calls_(recorder.device_calls()), recorder_(recorder) {
  if (calls_ == nullptr) return;
  for (size_t i = 0; i < calls_->devices.size(); ++i) {
    intervals_[i].begin(*calls_, recorder, buffer, calls_->devices[i], seq);
  }
}

void DeviceIntervals::end(const cuda::SpanLabels& labels) {
  if (calls_ == nullptr) return;
  for (size_t i = calls_->devices.size(); i-- > 0;) intervals_[i].end(*calls_, recorder_, labels);
}

void begin_on_device(Scope& scope, int slot, Recorder& recorder, ThreadBuffer& buffer,
                     uint32_t seq) {
  DeviceCalls* calls = recorder.device_calls();
  if (calls == nullptr || calls->devices.empty()) return;
  auto* interval = new (std::nothrow) DeviceInterval;
  if (interval == nullptr) {
    recorder.count_fault();
    return;
  }
  interval->begin(*calls, recorder, buffer, calls->devices.front(), seq);
  delete scope.entries[slot].device;
  scope.entries[slot].device = interval;
}

void end_on_device(Scope& scope, int slot, Recorder& recorder, const cuda::SpanLabels& labels) {
  DeviceInterval* interval = scope.entries[slot].device;
  DeviceCalls* calls = recorder.device_calls();
  if (interval == nullptr || calls == nullptr || tls_thread_state == nullptr ||
      scope.thread_uid != tls_thread_state->uid) {
    return;
  }
  interval->end(*calls, recorder, labels);
}

void begin_step_on_devices(Scope* scope) {
  for_each_active([&](int slot, Recorder& recorder) {
    if (recorder.device_calls() == nullptr) return;
    ThreadBuffer* buffer = recorder.buffer();
    if (buffer == nullptr) return;
    if (scope->seq == 0) scope->seq = tls_thread_state->next_seq();
    begin_on_device(*scope, slot, recorder, *buffer, scope->seq);
  });
}

namespace {

struct DeviceSpanCall {
  SpanCall base;  // first, so that span_call_* work on it
  int device;
};

// In a step that has no spans of this sort: only a graph that is being captured has use for it.
[[gnu::noinline]] PyObject* capture_call(const DeviceSpanCall& call, PyObject* args,
                                         PyObject* kwargs, Recorder& recorder, ThreadBuffer& buffer,
                                         DeviceCalls& calls) {
  DeviceInterval interval;
  const uint32_t seq = tls_thread_state->next_seq();
  interval.begin(calls, recorder, buffer, call.device, seq);
  PyObject* result = call.base.inner.call(args, kwargs);
  interval.end(calls, recorder, {call.base.site, seq, 0, kNone32, false, call.base.left_out});
  observe_result(call.base, buffer, result);
  return result;
}

PyObject* device_span_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto& call = *reinterpret_cast<DeviceSpanCall*>(self);
  Recorder& recorder = *call.base.recorder;
  DeviceCalls* calls = recorder.device_calls();
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  if (buffer == nullptr || calls == nullptr) return span_call(self, args, kwargs);
  if ((buffer->open_detail & call.base.left_out) != 0) {
    if (!is_call_captured(*calls, *buffer, call.device)) return span_call(self, args, kwargs);
    return capture_call(call, args, kwargs, recorder, *buffer, *calls);
  }
  const Enclosing outer =
      buffer->open_seq != 0 ? Enclosing{buffer->open_seq, buffer->open_step} : enclosing(recorder);
  const uint32_t seq = tls_thread_state->coming_seq();
  DeviceInterval interval;
  interval.begin(*calls, recorder, *buffer, call.device, seq);
  PyObject* result = timed_call(call.base.inner, args, kwargs, recorder, *buffer, call.base.site,
                                outer.seq, outer.step);
  interval.end(*calls, recorder, {call.base.site, seq, 0, outer.step, false, call.base.left_out});
  observe_result(call.base, *buffer, result);
  return result;
}

int device_span_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  unsigned int site = 0;
  PyObject* observer = nullptr;
  unsigned int detail = 0;
  int device = 0;
  if (!PyArg_ParseTuple(args, "OOIIOi:DeviceSpanCall", &inner, &recorder, &site, &detail, &observer,
                        &device)) {
    return -1;
  }
  if (device < 0 || device >= kMaxDevices) {
    PyErr_SetString(PyExc_ValueError, "no such device");
    return -1;
  }
  reinterpret_cast<DeviceSpanCall*>(self)->device = device;
  return span_call_init(reinterpret_cast<SpanCall*>(self), inner, recorder, site, detail, observer);
}

PyMemberDef members[] = {{"device", T_INT, offsetof(DeviceSpanCall, device), READONLY, nullptr},
                         {nullptr, 0, 0, 0, nullptr}};
PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(device_span_init)},
                       {Py_tp_call, reinterpret_cast<void*>(device_span_call)},
                       {Py_tp_traverse, reinterpret_cast<void*>(span_call_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(span_call_clear)},
                       {Py_tp_members, members},
                       {0, nullptr}};
PyType_Spec spec = {"pertoken._native.DeviceSpanCall", sizeof(DeviceSpanCall), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};

// The recorder may go in any thread, and when Python is no more.
void delete_calls(DeviceCalls* calls) {
  if (Py_IsInitialized() != 0) {
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_CLEAR(calls->current_stream);
    for (PyObject*& index : calls->indices) Py_CLEAR(index);
    PyGILState_Release(state);
  }
  delete calls;
}

}  // namespace

bool add_device_span_call_type(PyObject* module) {
  PyObject* base = PyObject_GetAttrString(module, "SpanCall");
  if (base == nullptr) return false;
  PyObject* type = PyType_FromSpecWithBases(&spec, base);
  Py_DECREF(base);
  return type != nullptr && PyModule_AddObject(module, "DeviceSpanCall", type) == 0;
}

namespace {

// Captured graphs outlive recordings, so what their stamps write into is the process's.
std::shared_ptr<cuda::StampDevices>& stamp_devices() {
  static auto& devices = *new std::shared_ptr<cuda::StampDevices>;
  return devices;
}

}  // namespace

void forget_captures() noexcept { stamp_devices().reset(); }

std::string time_devices(Recorder& recorder, PyObject* current_stream,
                         const std::vector<int>& devices) {
  if (std::any_of(devices.begin(), devices.end(),
                  [](int device) { return device < 0 || device >= kMaxDevices; })) {
    return "only the first " + std::to_string(kMaxDevices) + " devices of a process can be timed";
  }
  if (DeviceCalls* known = recorder.device_calls()) {
    known->devices = devices;  // threads have lanes in its timer, which therefore stays
    return {};
  }
  const cuda::DriverStatus driver = cuda::driver();
  if (driver.api == nullptr) return driver.reason;
  std::shared_ptr<DeviceCalls> calls(new DeviceCalls, &delete_calls);
  calls->devices = devices;
  for (int i = 0; i < kMaxDevices; ++i) {
    calls->indices[static_cast<size_t>(i)] = PyLong_FromLong(i);
    if (calls->indices[static_cast<size_t>(i)] == nullptr) {
      PyErr_Clear();
      return "there is no memory";
    }
  }
  calls->current_stream = Py_NewRef(current_stream);
  calls->timer = std::make_shared<cuda::EventTimer>(*driver.api);
  if (stamp_devices() == nullptr) {
    stamp_devices() = std::make_shared<cuda::StampDevices>(*driver.api, cuda::kernel_image());
  }
  calls->stamps = std::make_shared<cuda::StampReader>(calls->timer, stamp_devices());
  recorder.add_device_source(calls->timer);
  recorder.add_device_source(calls->stamps);
  recorder.set_device_calls(std::move(calls));
  return {};
}

}  // namespace pertoken::bindings
