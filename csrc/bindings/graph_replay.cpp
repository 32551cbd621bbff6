#include "bindings/graph_replay.h"

#include <pybind11/pybind11.h>

#include "bindings/call_slots.h"
#include "bindings/device_calls.h"
#include "bindings/opener.h"
#include "bindings/sampled_forward.h"
#include "bindings/span_call.h"
#include "bindings/step_region.h"
#include "cuda/driver_scope.h"

namespace pertoken::bindings {

namespace {

// A graph with stamps, as one number that Python keeps for its CUDAGraph.
struct GraphHandle {
  int device = 0;
  uint32_t graph = 0;  // 0: it has none
  uint32_t calls = 0;  // of the recording that are in it
};

// 4 bits of device, 28 of calls, of which no graph has so many: they would take 12 GB.
static_assert(kMaxDevices <= 16);

uint64_t packed(const GraphHandle& handle) noexcept {
  return static_cast<uint64_t>(handle.device) << 60 | uint64_t{handle.calls} << 32 | handle.graph;
}

GraphHandle unpacked(uint64_t number) noexcept {
  return {static_cast<int>(number >> 60), static_cast<uint32_t>(number),
          static_cast<uint32_t>(number >> 32) & 0x0FFFFFFFU};
}

struct GraphReplayCall {
  SpanCall base;  // first, so that span_call_* work on it
  // What is captured and what of it is observed, by the identity of the CUDAGraph.
  PyObject* graphs;
  PyObject* observed;
};

// 0 where it is not there.
uint64_t number_of(PyObject* numbers, PyObject* args) noexcept {
  if (PyTuple_GET_SIZE(args) == 0 || numbers == nullptr || PyDict_GET_SIZE(numbers) == 0) return 0;
  PyObject* key = PyLong_FromVoidPtr(PyTuple_GET_ITEM(args, 0));
  PyObject* found = key == nullptr ? nullptr : PyDict_GetItemWithError(numbers, key);
  const uint64_t number = found == nullptr ? 0 : PyLong_AsUnsignedLongLong(found);
  Py_XDECREF(key);
  if (PyErr_Occurred() == nullptr) return number;
  PyErr_Clear();
  return 0;
}

GraphHandle handle_of(const GraphReplayCall& call, PyObject* args) noexcept {
  return unpacked(number_of(call.graphs, args));
}

// `use(stamps, graph)` of the graph that end_capture() gave a number, with its context current.
template <typename Use>
void with_stamps(Recorder& recorder, uint64_t number, Use&& use) {
  DeviceCalls* calls = recorder.device_calls();
  const GraphHandle handle = unpacked(number);
  if (calls == nullptr || handle.graph == 0) return;
  cuda::GraphStamps* stamps = calls->stamps->stamps(handle.device);
  const cuda::TimedDevice* device = calls->timer->device(handle.device);
  if (stamps == nullptr || device == nullptr) return;
  const cuda::CurrentContext current(device->api, device->context);
  if (current.result() == cuda::CUDA_SUCCESS) use(*stamps, handle.graph);
}

// What torch does, for which it gives up the GIL: meanwhile the graph's nodes stay as they are.
PyObject* launch(const GraphReplayCall& call, PyObject* args, PyObject* kwargs,
                 const GraphHandle& handle, uint64_t observed) {
  Recorder& recorder = *call.base.recorder;
  DeviceCalls* calls = recorder.device_calls();
  const bool has_stamps = calls != nullptr && handle.graph != 0;
  cuda::GraphStamps* stamps = has_stamps ? calls->stamps->stamps(handle.device) : nullptr;
  if (stamps != nullptr) stamps->begin_launch(handle.graph);
  if (observed != 0) call.base.observer->begin_launch(observed);
  PyObject* result = call.base.inner.call(args, kwargs);
  if (observed != 0) call.base.observer->end_launch(observed);
  if (stamps != nullptr && stamps->end_launch(handle.graph)) {
    with_stamps(recorder, packed(handle),
                [](cuda::GraphStamps& of, uint32_t graph) { of.rest_now(graph); });
  }
  return result;
}

// Observed where the step is. No time of the replay's own is in it.
PyObject* replay(const GraphReplayCall& call, PyObject* args, PyObject* kwargs,
                 ThreadBuffer& buffer, const GraphHandle& handle) {
  const uint64_t observed = number_of(call.observed, args);
  if (observed == 0) return launch(call, args, kwargs, handle, 0);
  const cuda::GpuPlace place = call.base.observer->begin_replay(buffer, observed);
  PyObject* result = launch(call, args, kwargs, handle, observed);
  call.base.observer->end_replay(place, observed, result != nullptr);
  return result;
}

// One replay on its way, on the stream that is current.
struct AnnouncedReplay {
  cuda::GraphStamps* stamps = nullptr;
  cuda::CUstream stream = nullptr;
  cuda::OpenedReplay opened;
};

// Nothing is set on a stream that is being captured itself: it would become a part of that graph.
AnnouncedReplay announce(DeviceCalls& calls, Recorder& recorder, cuda::EventLane& lane,
                         const GraphHandle& handle) {
  AnnouncedReplay replay;
  if (handle.calls == 0) return replay;
  replay.stamps = calls.stamps->stamps(handle.device);
  if (replay.stamps == nullptr) return replay;
  if (!current_stream(calls, handle.device, replay.stream)) {
    recorder.count_fault();
    return replay;
  }
  const cuda::TimedDevice& device = lane.device();
  const cuda::StreamUse use = stream_use(device, replay.stream);
  if (use == cuda::StreamUse::kCaptured) return replay;
  if (use != cuda::StreamUse::kRuns) {
    calls.stamps->count_refused(handle.calls);
    return replay;
  }
  const cuda::CurrentContext current(device.api, device.context);
  if (current.result() != cuda::CUDA_SUCCESS) return replay;
  replay.opened = replay.stamps->open_replay(handle.graph, replay.stream);
  if (replay.opened.result == cuda::CUDA_ERROR_NOT_READY) {
    calls.stamps->count_other_stream(handle.calls);
  } else if (replay.opened.result != cuda::CUDA_SUCCESS) {
    calls.stamps->count_refused(handle.calls);
  }
  return replay;
}

// Where steps are sampled, the next replay is likely to be without.
void close(const AnnouncedReplay& replay, Recorder& recorder, const cuda::TimedDevice& device,
           uint32_t graph) noexcept {
  if (!replay.opened.is_to_close) return;
  const cuda::CurrentContext current(device.api, device.context);
  replay.stamps->close_replay(graph, replay.stream, !samples_spans(recorder));
}

PyObject* timed_replay(const GraphReplayCall& call, PyObject* args, PyObject* kwargs,
                       ThreadBuffer& buffer, DeviceCalls& calls, const GraphHandle& handle,
                       uint32_t step) {
  Recorder& recorder = *call.base.recorder;
  const int device = handle.graph == 0 ? calls.devices.front() : handle.device;
  cuda::EventLane* lane = calls.timer->lane(buffer, device);
  if (lane == nullptr) return replay(call, args, kwargs, buffer, handle);
  if (handle.graph == 0) calls.stamps->count_bare_replay();
  const uint32_t seq = tls_thread_state->next_seq();
  const uint32_t first_seq = tls_thread_state->next_seqs(handle.calls);
  const AnnouncedReplay announced = announce(calls, recorder, *lane, handle);
  DeviceInterval interval;
  interval.begin(calls, recorder, buffer, device, seq);
  const cuda::StampedReplay stamped{.ticks = now_ticks(),
                                    .graph = handle.graph,
                                    .number = announced.opened.number,
                                    .seq = seq,
                                    .first_seq = first_seq,
                                    .calls = handle.calls,
                                    .step = step,
                                    .left_out = buffer.open_detail,
                                    .track = buffer.track,
                                    .device = static_cast<int16_t>(device)};
  const bool is_awaited = announced.opened.number != 0 && interval.has_start();
  if (is_awaited) calls.stamps->await(stamped);
  PyObject* result = replay(call, args, kwargs, buffer, handle);
  lane->note_launch();
  if (is_awaited && result == nullptr) calls.stamps->withdraw(stamped);
  interval.end(calls, recorder, {call.base.site, seq, 0, step, false});
  close(announced, recorder, lane->device(), handle.graph);
  return result;
}

// In a step that the user declares, and in no call of the model: a forward of the step, with the
// detail that one would have. The caller holds `region`.
PyObject* replay_in_region(const GraphReplayCall& call, PyObject* args, PyObject* kwargs,
                           ThreadBuffer& buffer, DeviceCalls& calls, const GraphHandle& handle,
                           Scope* region) {
  Recorder& recorder = *call.base.recorder;
  const uint32_t step = begin_replayed_step(region, recorder, buffer);
  if (step == kNone32) return timed_replay(call, args, kwargs, buffer, calls, handle, step);
  ScopeEntry& entry = region->entries[recorder.slot()];
  const SampledForward sampled =
      SampledForward::in_region(recorder, buffer, region->step_kind, step, entry);
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail = sampled.open_detail();
  const uint64_t start_ticks = now_ticks();
  PyObject* result = (buffer.open_detail & call.base.left_out) != 0
                         ? replay(call, args, kwargs, buffer, handle)
                         : timed_replay(call, args, kwargs, buffer, calls, handle, step);
  sampled.settle(buffer, now_ticks() - start_ticks, 0, {});
  buffer.open_detail = outer_detail;
  return result;
}

// A replay in a step whose layers are left out is that step's time, and no span.
PyObject* graph_replay_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto& call = *reinterpret_cast<GraphReplayCall*>(self);
  Recorder& recorder = *call.base.recorder;
  DeviceCalls* calls = recorder.device_calls();
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  const GraphHandle handle = handle_of(call, args);
  if (buffer == nullptr || calls == nullptr || calls->devices.empty()) {
    return launch(call, args, kwargs, handle, number_of(call.observed, args));
  }
  if ((buffer->open_detail & call.base.left_out) != 0) {
    return replay(call, args, kwargs, *buffer, handle);
  }
  if (buffer->open_seq != 0) {
    return timed_replay(call, args, kwargs, *buffer, *calls, handle, buffer->open_step);
  }
  Scope* region = current_scope(&Scope::step);
  if (region != nullptr && handle.graph != 0) {
    // Its step may be left meanwhile. Not by a destructor: see begin_slots().
    Py_INCREF(reinterpret_cast<PyObject*>(region));
    PyObject* result = replay_in_region(call, args, kwargs, *buffer, *calls, handle, region);
    Py_DECREF(reinterpret_cast<PyObject*>(region));
    return result;
  }
  return timed_replay(call, args, kwargs, *buffer, *calls, handle, enclosing(recorder).step);
}

int graph_replay_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  const char* name = nullptr;
  PyObject* graphs = nullptr;
  PyObject* observer = nullptr;
  PyObject* observed = nullptr;
  if (!PyArg_ParseTuple(args, "OOsO!OO!:GraphReplayCall", &inner, &recorder, &name, &PyDict_Type,
                        &graphs, &observer, &PyDict_Type, &observed)) {
    return -1;
  }
  uint32_t site = 0;
  try {
    site = intern_site(SiteCategory::kRegion, name);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return -1;
  }
  auto& call = *reinterpret_cast<GraphReplayCall*>(self);
  call.graphs = Py_NewRef(graphs);
  call.observed = Py_NewRef(observed);
  return span_call_init(&call.base, inner, recorder, site, kDetailLayers, observer);
}

int graph_replay_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(reinterpret_cast<GraphReplayCall*>(self)->graphs);
  Py_VISIT(reinterpret_cast<GraphReplayCall*>(self)->observed);
  return span_call_traverse(self, visit, arg);
}

int graph_replay_clear(PyObject* self) {
  Py_CLEAR(reinterpret_cast<GraphReplayCall*>(self)->graphs);
  Py_CLEAR(reinterpret_cast<GraphReplayCall*>(self)->observed);
  return span_call_clear(self);
}

void graph_replay_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto& call = *reinterpret_cast<GraphReplayCall*>(self);
  if (call.base.weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  Py_CLEAR(call.graphs);
  Py_CLEAR(call.observed);
  span_call_release(&call.base);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(graph_replay_init)},
                       {Py_tp_call, reinterpret_cast<void*>(graph_replay_call)},
                       {Py_tp_descr_get, reinterpret_cast<void*>(bind_method)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(graph_replay_dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(graph_replay_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(graph_replay_clear)},
                       {0, nullptr}};
PyType_Spec spec = {"pertoken._native.GraphReplayCall", sizeof(GraphReplayCall), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

void begin_capture(Recorder& recorder) {
  if (DeviceCalls* calls = recorder.device_calls()) ++calls->open_captures;
  // What is captured outside steps is stamped, too.
  if (CallSlots* call_slots = recorder.call_slots()) call_slots->put_back();
}

// Their ends will not be told.
void abandon_captures(Recorder& recorder) {
  if (DeviceCalls* calls = recorder.device_calls()) calls->open_captures = 0;
}

// The capture on the current stream of one of the model's devices is about to end.
uint64_t end_capture(Recorder& recorder) {
  DeviceCalls* calls = recorder.device_calls();
  if (calls == nullptr) return 0;
  if (calls->open_captures > 0) --calls->open_captures;
  for (const int device : calls->devices) {
    cuda::GraphStamps* stamps = calls->stamps->stamps(device);
    cuda::CUstream stream = nullptr;
    if (stamps == nullptr || !current_stream(*calls, device, stream)) continue;
    const uint32_t graph = stamps->graph_of(stream);
    if (graph == 0) continue;
    return packed({device, graph, calls->stamps->calls_of(device, graph)});
  }
  return 0;
}

void hold_executable(Recorder& recorder, uint64_t number, uintptr_t executable) {
  with_stamps(recorder, number, [&](cuda::GraphStamps& stamps, uint32_t graph) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a handle, as torch tells it.
    stamps.hold_executable(graph, reinterpret_cast<cuda::CUgraphExec>(executable));
  });
}

void release_executable(Recorder& recorder, uint64_t number, bool is_there) {
  with_stamps(recorder, number, [&](cuda::GraphStamps& stamps, uint32_t graph) {
    stamps.release_executable(graph, is_there);
  });
}

}  // namespace

void bind_graphs(pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class.def("begin_capture", &begin_capture)
      .def("end_capture", &end_capture)
      .def("abandon_captures", &abandon_captures)
      .def("hold_executable", &hold_executable)
      .def("release_executable", &release_executable);
}

bool add_graph_replay_call_type(PyObject* module) {
  PyObject* base = PyObject_GetAttrString(module, "SpanCall");
  if (base == nullptr) return false;
  PyObject* type = PyType_FromSpecWithBases(&spec, base);
  Py_DECREF(base);
  return type != nullptr && PyModule_AddObject(module, "GraphReplayCall", type) == 0;
}

}  // namespace pertoken::bindings
