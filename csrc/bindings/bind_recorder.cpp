// The recorder as Python sees it, and the types that stand on the hot path.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/bind_sampling.h"
#include "bindings/bind_spool.h"
#include "bindings/bind_totals.h"
#include "bindings/bind_triggers.h"
#include "bindings/cache_length.h"
#include "bindings/compiled_layers.h"
#include "bindings/device_calls.h"
#include "bindings/dlpack_tensor.h"
#include "bindings/graph_replay.h"
#include "bindings/logit_reader.h"
#include "bindings/module.h"
#include "bindings/named_values.h"
#include "bindings/request_numbers.h"
#include "bindings/scope.h"
#include "bindings/snapshot_columns.h"
#include "bindings/span_call.h"
#include "bindings/stats_devices.h"
#include "bindings/tensor_sizes.h"
#include "bindings/without_gil.h"
#include "core/recorder.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

std::shared_ptr<Recorder> make_recorder(size_t store_limit_bytes, size_t ring_capacity,
                                        uint64_t keep_ns, uint32_t observe_every,
                                        uint64_t observe_seed) {
  return Recorder::create({.store_limit_bytes = store_limit_bytes,
                           .ring_capacity = ring_capacity,
                           .keep_ns = keep_ns,
                           .observe_every = observe_every,
                           .observe_seed = observe_seed});
}

void start(Recorder& recorder) {
  bool started = false;
  without_gil([&] { started = recorder.start(); });
  if (!started) {
    throw std::runtime_error("at most " + std::to_string(kMaxRecorders) +
                             " recordings can run at once in a process; stop one first");
  }
}

// Steps are by kind, in the order of the kinds' numbers.
py::dict status(Recorder& recorder) {
  RecorderStatus status;
  without_gil([&] { status = recorder.status(); });
  NamedValues result;
  result["steps"] = py::cast(status.activity.steps);
  result["tokens_in"] = status.activity.tokens_in;
  result["spans"] = status.activity.spans;
  result["step_ns"] = py::cast(status.step_ns);
  result["timed_roots"] = status.activity.timed_roots;
  result["root_ns"] = status.activity.root_ns;
  result["drain_cpu_ns"] = status.drain_cpu_ns;
  result["store_bytes"] = status.store_bytes;
  result["records_dropped"] = status.losses.records_dropped;
  result["steps_evicted"] = status.losses.steps_evicted;
  result["faults"] = status.losses.recording_faults + status.losses.collector_faults;
  return result;
}

}  // namespace

Recorder* recorder_of(PyObject* object) {
  try {
    return py::cast<Recorder*>(py::handle(object));
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError, "not a Recorder");
    return nullptr;
  }
}

void bind_recorder(py::module_& m) {
  py::class_<Recorder, std::shared_ptr<Recorder>> recorder_class(m, "Recorder");
  recorder_class
      .def(py::init(&make_recorder), py::arg("store_limit_bytes"), py::arg("ring_capacity"),
           py::arg("keep_ns") = 0, py::arg("observe_every") = 16, py::arg("observe_seed") = 0)
      .def("start", &start)
      .def("stop", [](Recorder& recorder) { without_gil([&] { recorder.stop(); }); })
      .def("drain", [](Recorder& recorder) { without_gil([&] { recorder.drain(); }); })
      .def_property_readonly("active", &Recorder::active)
      .def_property_readonly("first_step", &Recorder::first_step)
      .def("oldest_step_ticks",
           [](Recorder& recorder) {
             uint64_t ticks = 0;
             without_gil([&] { ticks = recorder.oldest_step_ticks(); });
             return ticks;
           })
      .def_property_readonly("store_bytes", &Recorder::store_bytes)
      .def_property_readonly("drain_cpu_ns",
                             [](Recorder& recorder) {
                               uint64_t ns = 0;
                               without_gil([&] { ns = recorder.drain_cpu_ns(); });
                               return ns;
                             })
      .def("status", &status)
      .def(
          "snapshot",
          [](Recorder& recorder, uint64_t origin_ticks, const py::array_t<uint64_t>& marks) {
            RecorderSnapshot snapshot;
            without_gil([&] { snapshot = recorder.snapshot(); });
            return snapshot_columns(snapshot, origin_ticks, marks);
          },
          py::arg("origin_ticks"), py::arg("marks"));
  recorder_class.def(
      "time_devices",
      [](Recorder& recorder, const py::function& current_stream, const std::vector<int>& devices) {
        return time_devices(recorder, current_stream.ptr(), devices);
      },
      py::arg("current_stream"), py::arg("devices"));
  // For tests: a table of another driver, which lives as long as it is used; None: the real one.
  m.def(
      "replace_driver",
      [](const std::optional<py::capsule>& table) {
        forget_captures();
        cuda::replace_driver(table ? table->get_pointer<const cuda::DriverApi>() : nullptr);
        forget_stats_devices();
      },
      py::arg("table"));
  bind_sampling(m, recorder_class);
  bind_logit_reader(recorder_class);
  bind_totals(m, recorder_class);
  bind_spool(m, recorder_class);
  bind_triggers(recorder_class);
  bind_graphs(recorder_class);
  bind_compiled_layers(m);
  m.def(
      "intern_module",
      [](const std::string& name) { return intern_site(SiteCategory::kModule, name); },
      py::arg("name"));
  m.def(
      "learn_exchange_table",
      [](const py::type& tensor_type, const py::type& parameter_type) {
        learn_exchange_table(tensor_type.ptr(), parameter_type.ptr());
      },
      py::arg("tensor_type"), py::arg("parameter_type"));
  m.def(
      "learn_sizes", [](const py::list& tensors) { return learn_sizes(tensors.ptr()); },
      py::arg("tensors"));
  // For tests: none where they are not known to stand in place.
  m.def(
      "kept_sizes",
      [](const py::object& tensor) {
        int64_t sizes[kMostKeptSizes] = {};
        const Py_ssize_t dims = kept_sizes(tensor.ptr(), sizes, kMostKeptSizes);
        py::list found;
        for (Py_ssize_t i = 0; i < dims; ++i) found.append(sizes[i]);
        return found;
      },
      py::arg("tensor"));
  m.def(
      "set_known_cache",
      [](const py::function& cache_function, const py::function& layer_function) {
        set_known_cache(cache_function.ptr(), layer_function.ptr());
      },
      py::arg("cache_function"), py::arg("layer_function"));
  m.def(
      "cache_length",
      [](const py::object& cache) {
        bool failed = false;
        return cache_length(cache.ptr(), failed);
      },
      py::arg("cache"));
  m.def("unix_time_ns", &unix_time_ns);
  m.attr("MAX_RECORDERS") = kMaxRecorders;
  if (!add_request_number_types(m.ptr()) || !add_scope_types(m.ptr()) ||
      !add_span_call_type(m.ptr()) || !add_device_span_call_type(m.ptr()) ||
      !add_graph_replay_call_type(m.ptr()) || !add_root_call_type(m.ptr()) ||
      !add_generation_types(m.ptr()) || !add_method_call_type(m.ptr()) ||
      !add_root_search_types(m.ptr()) || !add_weak_method_type(m.ptr())) {
    throw py::error_already_set();
  }
}

}  // namespace pertoken::bindings
