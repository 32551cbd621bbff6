#include "bindings/compiled_layers.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <ranges>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bindings/device_calls.h"
#include "bindings/scope.h"
#include "bindings/span_call.h"
#include "core/clock.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

// Which module an operator stands for. Several modules share one compiled graph, so the graph says
// only which kind of module it is; the address of one of its parameters says which one.
struct ModuleKey {
  uint32_t kind;
  uint64_t address;
  bool operator==(const ModuleKey&) const = default;
};

struct ModuleKeyHash {
  size_t operator()(const ModuleKey& key) const noexcept {
    return static_cast<size_t>((key.address ^ key.kind) * 0x9E3779B97F4A7C15u >> 16);
  }
};

// A module in one recorder.
struct LayerSite {
  std::shared_ptr<Recorder> recorder;
  uint32_t site;
  uint32_t left_out;  // as of SpanCall
  int device;         // on which its calls are timed; negative: on none
};

struct OpenLayer {
  uint64_t uid;  // of the recorder
  uint64_t start_ticks;
  uint32_t site;
  uint32_t seq;
  uint32_t outer_seq;
  uint32_t step;
  uint32_t left_out;
  bool is_on_host;  // otherwise only the graph that is being captured has use for it
  DeviceInterval interval;
};

inline constexpr size_t kMaxOpen = 64;

// Of one thread, in all recorders.
struct OpenLayers {
  std::array<OpenLayer, kMaxOpen> layers;
  size_t count;
  uint64_t last_ticks;  // of the last operator
};
// Made on first use, as a thread's ring is: the storage of threads has no room for it.
thread_local constinit std::unique_ptr<OpenLayers> tls_open;

// Changed under the GIL alone.
std::unordered_map<ModuleKey, std::vector<LayerSite>, ModuleKeyHash> sites;

// Ends those from `place` on for which `is_over` holds, innermost first; all are of `recorder`.
// Without a buffer they go unrecorded, and without a recorder, which is no more, untold.
template <typename F>
void end_layers(OpenLayers& open, size_t place, uint64_t end_ticks, Recorder* recorder,
                ThreadBuffer* buffer, F&& is_over) noexcept {
  for (size_t inner = open.count; inner-- > place && recorder != nullptr;) {
    OpenLayer& layer = open.layers[inner];
    if (!is_over(layer)) continue;
    if (buffer != nullptr && layer.is_on_host) {
      buffer->push({layer.start_ticks, end_ticks, make_tag(RecordType::kSpan, layer.site),
                    layer.seq, layer.outer_seq, layer.step});
    }
    if (!layer.interval.has_begun()) continue;
    layer.interval.end(*recorder->device_calls(), *recorder,
                       {layer.site, layer.seq, 0, layer.step, false, layer.left_out});
  }
  auto* const end = open.layers.data() + open.count;
  open.count = static_cast<size_t>(std::remove_if(open.layers.data() + place, end, is_over) -
                                   open.layers.data());
}

bool is_running(uint64_t uid) noexcept {
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    const Recorder* recorder = Recorder::at(slot);
    if (recorder != nullptr && recorder->uid() == uid) return true;
  }
  return false;
}

// Only inside a recorded call, whose wrapper puts the open span right again after an exception.
void enter(const LayerSite& here) noexcept {
  Recorder& recorder = *here.recorder;
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  if (buffer == nullptr || buffer->open_seq == 0) return;
  DeviceCalls* calls = here.device < 0 ? nullptr : recorder.device_calls();
  const bool is_left_out = (buffer->open_detail & here.left_out) != 0;
  if (is_left_out && (calls == nullptr || !is_call_captured(*calls, *buffer, here.device))) return;
  if (tls_open == nullptr) tls_open.reset(new (std::nothrow) OpenLayers{});
  if (tls_open == nullptr) {
    recorder.count_fault();
    return;
  }
  OpenLayers& open = *tls_open;
  if (open.count > 0) {
    // An exception has left them, which went no further than the forward of that step.
    end_layers(open, 0, open.last_ticks, &recorder, buffer, [&](const OpenLayer& layer) {
      return layer.uid == recorder.uid() && layer.step != buffer->open_step;
    });
  }
  if (open.count == kMaxOpen) {
    // Recordings that stopped in the middle of a call.
    end_layers(open, 0, 0, nullptr, nullptr,
               [](const OpenLayer& layer) { return !is_running(layer.uid); });
  }
  if (open.count == kMaxOpen) {
    recorder.count_fault();
    return;
  }
  OpenLayer& layer = open.layers[open.count++];
  layer = {.uid = recorder.uid(),
           .start_ticks = 0,
           .site = here.site,
           .seq = tls_thread_state->next_seq(),
           .outer_seq = buffer->open_seq,
           .step = buffer->open_step,
           .left_out = here.left_out,
           .is_on_host = !is_left_out,
           .interval = {}};
  if (calls != nullptr) layer.interval.begin(*calls, recorder, *buffer, here.device, layer.seq);
  if (layer.is_on_host) buffer->open_seq = layer.seq;
  layer.start_ticks = open.last_ticks = now_ticks();
}

void leave(OpenLayers& open, const LayerSite& here, uint64_t end_ticks) noexcept {
  const uint64_t uid = here.recorder->uid();
  size_t place = open.count;
  while (place > 0) {
    const OpenLayer layer = open.layers[--place];
    if (layer.uid != uid || layer.site != here.site) continue;
    ThreadBuffer* buffer = here.recorder->active() ? here.recorder->buffer() : nullptr;
    if (buffer != nullptr && buffer->open_step != layer.step) return;
    if (buffer != nullptr) buffer->open_seq = layer.outer_seq;
    end_layers(open, place, end_ticks, here.recorder.get(), buffer,
               [uid](const OpenLayer& inner) { return inner.uid == uid; });
    return;
  }
}

// The module that the arguments of an operator name: (order, hidden state, parameter, kind). Null
// where there is none, or with an exception set.
const std::vector<LayerSite>* sites_of(PyObject* const* args, Py_ssize_t count) {
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "expected (order, hidden, parameter, kind)");
    return nullptr;
  }
  if (sites.empty()) return nullptr;
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* address = PyObject_CallMethodNoArgs(args[2], data_ptr);
  if (address == nullptr) return nullptr;
  const ModuleKey key = {static_cast<uint32_t>(PyLong_AsUnsignedLongMask(args[3])),
                         PyLong_AsUnsignedLongLongMask(address)};
  Py_DECREF(address);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const auto found = sites.find(key);
  return found == sites.end() ? nullptr : &found->second;
}

PyObject* enter_layer(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const std::vector<LayerSite>* found = sites_of(args, count);
  if (found != nullptr) {
    for (const LayerSite& here : *found) enter(here);
  } else if (PyErr_Occurred() != nullptr && !swallow_fault(self)) {
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* leave_layer(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  const uint64_t end_ticks = now_ticks();
  const std::vector<LayerSite>* found = sites_of(args, count);
  if (found != nullptr && tls_open != nullptr) {
    tls_open->last_ticks = end_ticks;
    for (const LayerSite& here : std::views::reverse(*found)) leave(*tls_open, here, end_ticks);
  } else if (PyErr_Occurred() != nullptr && !swallow_fault(self)) {
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef operators[] = {
    {"enter_layer", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(enter_layer)),
     METH_FASTCALL, "What the operator pertoken::enter_layer does on the host."},
    {"leave_layer", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(leave_layer)),
     METH_FASTCALL, "What the operator pertoken::leave_layer does on the host."},
    {nullptr, nullptr, 0, nullptr}};

void remove_compiled_layers(const std::shared_ptr<Recorder>& recorder) {
  for (auto entry = sites.begin(); entry != sites.end();) {
    std::erase_if(entry->second, [&](const LayerSite& here) { return here.recorder == recorder; });
    entry = entry->second.empty() ? sites.erase(entry) : std::next(entry);
  }
}

void add_compiled_layer(const std::shared_ptr<Recorder>& recorder, uint32_t kind, uint64_t address,
                        uint32_t site, uint32_t span_detail, int device) {
  std::vector<LayerSite>& here = sites[{kind, address}];
  for (LayerSite& known : here) {
    if (known.recorder == recorder) {
      known = {recorder, site, left_out(span_detail), device};
      return;
    }
  }
  here.push_back({recorder, site, left_out(span_detail), device});
}

}  // namespace

void close_compiled_layers(Recorder& recorder, ThreadBuffer& buffer) noexcept {
  if (tls_open == nullptr) return;
  end_layers(*tls_open, 0, tls_open->last_ticks, &recorder, recorder.active() ? &buffer : nullptr,
             [&](const OpenLayer& layer) { return layer.uid == recorder.uid(); });
}

void bind_compiled_layers(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), operators) != 0) throw py::error_already_set();
  m.def("add_compiled_layer", &add_compiled_layer, py::arg("recorder"), py::arg("kind"),
        py::arg("address"), py::arg("site"), py::arg("span_detail"), py::arg("device"));
  m.def("remove_compiled_layers", &remove_compiled_layers, py::arg("recorder"));
}

}  // namespace pertoken::bindings
