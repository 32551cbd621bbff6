#include "bindings/observer.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <utility>

#include "bindings/current_stream.h"
#include "bindings/device_calls.h"
#include "bindings/host_tensor.h"
#include "bindings/module.h"
#include "bindings/owned.h"
#include "bindings/scope.h"
#include "bindings/stats_devices.h"
#include "bindings/step_inputs.h"
#include "bindings/tensor_reading.h"
#include "bindings/without_gil.h"
#include "core/clock.h"
#include "core/step_detail.h"
#include "core/string_table.h"
#include "core/tensor_stats.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

// The view with its rows as the first dimension and the step's positions as the second, where it
// has them: either so, or one after the other in the first. False where it has not.
bool split_rows(TensorView& view, const ObservedStep& step, bool needs_positions) {
  if (step.batch_rows < 1 || view.dims < 1) return false;
  if (view.shape[0] == step.batch_rows) {
    return !needs_positions || (view.dims > 1 && view.shape[1] == step.positions);
  }
  if (step.positions < 1 || view.shape[0] != step.batch_rows * step.positions ||
      view.dims == kMaxDims) {
    return false;
  }
  for (auto i = static_cast<size_t>(view.dims); i > 0; --i) {
    view.shape[i] = view.shape[i - 1];
    view.strides_bytes[i] = view.strides_bytes[i - 1];
  }
  ++view.dims;
  view.shape[0] = step.batch_rows;
  view.shape[1] = step.positions;
  view.strides_bytes[0] = step.positions * view.strides_bytes[1];
  return true;
}

uint64_t value_count(const TensorView& view) {
  uint64_t count = 1;
  for (size_t i = 0; i < static_cast<size_t>(view.dims); ++i) {
    count *= static_cast<uint64_t>(view.shape[i]);
  }
  return count;
}

// Of one row, or of all.
ExpHistogram histogram_of_runs(const TensorView& view, const std::vector<ValidRun>& runs,
                               int64_t row) {
  ExpHistogram values;
  for (const ValidRun& run : runs) {
    if (row != kAllRows && run.row != row) continue;
    const TensorView of_row = slice_of(view, 0, run.batch_row, run.batch_row + 1);
    values.merge(histogram_of(slice_of(of_row, 1, run.begin, run.end), kDefaultHistogramScale));
  }
  return values;
}

// Where a call outside of a forward stands; `scope` holds that.
ObservedStep* step_of_scope(const Recorder& recorder, uint32_t& number, Owned& scope) {
  Scope* step = current_scope(&Scope::step);
  if (step == nullptr) return nullptr;
  ScopeEntry& entry = step->entries[recorder.slot()];
  if (entry.uid != recorder.uid()) return nullptr;
  scope.reset(Py_NewRef(reinterpret_cast<PyObject*>(step)));
  number = entry.step;
  return &entry.observed;
}

// From now on steps are chosen for it; and those of this thread that were decided on without it are
// decided on anew.
void begin_observing(Recorder& recorder, ThreadBuffer& buffer) {
  Sampler* sampler = recorder.sampler();
  if (sampler == nullptr || sampler->observes()) return;
  sampler->begin_observing();
  buffer.sampling.ahead = {};
}

}  // namespace

struct Observer::Calls {
  py::object read_elsewhere;
  py::object current_stream;
  py::object skip;
  py::object choose;
};

Observer::Observer(std::shared_ptr<Recorder> recorder, py::object read_elsewhere,
                   py::object current_stream, py::object skip, py::object choose, bool by_row)
    : recorder_(std::move(recorder)),
      calls_(new Calls{std::move(read_elsewhere), std::move(current_stream), std::move(skip),
                       std::move(choose)}),
      by_row_(by_row) {}

Observer::~Observer() = default;

void Observer::observe_output(ThreadBuffer& buffer, uint32_t site, PyObject* output) {
  const uint64_t start_ticks = now_ticks();
  const bool is_chosen = !calls_->choose.is_none();
  const Owned value(is_chosen ? PyObject_CallOneArg(calls_->choose.ptr(), output)
                              : first_floating_tensor(output));
  if (value) {
    observe(buffer.observed, buffer.open_step, site, value.get());
  } else {
    discard_error();
    skip(is_chosen ? "activation_output raised" : "a module put out no floating-point tensor");
  }
  buffer.observed.ticks += now_ticks() - start_ticks;
}

void Observer::observe_value(uint32_t site, PyObject* value) {
  ThreadBuffer* buffer = recorder_->active() ? recorder_->buffer() : nullptr;
  if (buffer == nullptr) return;
  begin_observing(*recorder_, *buffer);
  const uint64_t start_ticks = now_ticks();
  uint32_t number = kNone32;
  ObservedStep outside;
  Owned scope(nullptr);
  ObservedStep* step = step_outside_modules(*buffer, number, outside, scope);
  if (step->weight == 0 && !has_open_captures(*recorder_)) return;
  observe(*step, number, site, value);
  step->ticks += now_ticks() - start_ticks;
}

// What a value that no module put out belongs to: the step that is open, which `scope` holds where
// the user declares it, or else `outside`.
ObservedStep* Observer::step_outside_modules(ThreadBuffer& buffer, uint32_t& number,
                                             ObservedStep& outside, Owned& scope) {
  number = buffer.open_step;
  ObservedStep* step =
      number != kNone32 ? &buffer.observed : step_of_scope(*recorder_, number, scope);
  if (step != nullptr) return step;
  outside.weight = recorder_->observation_weight(kOutsideSteps);
  return &outside;
}

cuda::GpuPlace Observer::begin_replay(ThreadBuffer& buffer, uint64_t graph) {
  cuda::GpuPlace place{-1, nullptr};
  const uint64_t start_ticks = now_ticks();
  begin_observing(*recorder_, buffer);
  uint32_t number = kNone32;
  ObservedStep outside;
  Owned scope(nullptr);
  ObservedStep* step = step_outside_modules(buffer, number, outside, scope);
  if (step->weight == 0) return place;
  place.device = static_cast<int>(graph >> 32);
  const cuda::ObservationLabels labels{number, 0, step->kind, step->weight};
  if (!current_stream(place) || !gpus_->open_replay(place, static_cast<uint32_t>(graph), labels)) {
    place.device = -1;
  }
  step->ticks += now_ticks() - start_ticks;
  return place;
}

void Observer::end_replay(const cuda::GpuPlace& place, uint64_t graph, bool is_launched) {
  if (place.device < 0) return;
  gpus_->close_replay(place, static_cast<uint32_t>(graph), is_launched);
}

uint64_t Observer::end_capture() {
  for (int device = 0; gpus_ != nullptr && device < kMaxDevices; ++device) {
    if (!gpus_->has_captured(device)) continue;
    cuda::GpuPlace place{device, nullptr};
    if (!current_stream(place)) continue;
    const uint32_t graph = gpus_->captured_graph(place);
    if (graph != 0) return static_cast<uint64_t>(device) << 32 | graph;
  }
  return 0;
}

void Observer::begin_launch(uint64_t graph) noexcept {
  if (gpus_ == nullptr) return;
  gpus_->begin_launch(static_cast<int>(graph >> 32), static_cast<uint32_t>(graph));
}

void Observer::end_launch(uint64_t graph) noexcept {
  if (gpus_ == nullptr) return;
  gpus_->end_launch(static_cast<int>(graph >> 32), static_cast<uint32_t>(graph));
}

void Observer::hold_executable(uint64_t graph, uintptr_t executable) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a handle, as torch tells it.
  auto* const launched = reinterpret_cast<cuda::CUgraphExec>(executable);
  if (gpus_ == nullptr) return;
  gpus_->hold_executable(static_cast<int>(graph >> 32), static_cast<uint32_t>(graph), launched);
}

void Observer::release_executable(uint64_t graph, bool is_there) {
  if (gpus_ == nullptr) return;
  gpus_->release_executable(static_cast<int>(graph >> 32), static_cast<uint32_t>(graph), is_there);
}

// Of a step that is not observed, only what is captured.
void Observer::observe(const ObservedStep& step, uint32_t number, uint32_t site, PyObject* value) {
  TensorView view;
  cuda::GpuPlace place{-1, nullptr};
  Owned memory(nullptr);
  const auto find_stream = [this](cuda::GpuPlace& on) { return current_stream(on); };
  const Reading reading =
      find_values(value, calls_->read_elsewhere.ptr(), find_stream, view, place, memory);
  if (reading == Reading::kUnknown) recorder_->count_fault();
  if (reading != Reading::kReady) return;
  const uint64_t values = value_count(view);
  if (values == 0) {
    skip("a tensor was empty");
  } else if (place.device >= 0) {
    count_on_gpu(step, number, site, view, place);
  } else if (step.weight == 0) {
    return;
  } else if (values < kValuesWithoutGil) {
    count(step, number, site, view);
  } else {
    // The tensor is held meanwhile, by the caller or as the memory's owner.
    without_gil([&] { count(step, number, site, view); });
  }
}

// Without the GIL where the tensor is large.
void Observer::count(const ObservedStep& step, uint32_t number, uint32_t site,
                     const TensorView& view) noexcept {
  try {
    TensorView rows = view;
    const bool has_padding = step.valid != nullptr && split_rows(rows, step, true);
    const auto push = [&](int64_t row) {
      const bool is_row = row != kAllRows;
      recorder_->observations().push(
          {number, step.kind, static_cast<int32_t>(row), site, view.format, step.weight,
           has_padding ? histogram_of_runs(rows, *step.valid, row)
                       : histogram_of(is_row ? slice_of(rows, 0, row, row + 1) : view,
                                      kDefaultHistogramScale)});
    };
    const bool is_packed = step.rows != step.batch_rows;
    if (by_row_ && (has_padding || (!is_packed && split_rows(rows, step, false)))) {
      for (int64_t row = 0; row < step.rows; ++row) push(row);
    } else {
      push(kAllRows);
    }
  } catch (const std::exception&) {
    recorder_->count_fault();
  }
}

// Under the GIL, which is what orders the launches of several threads. The tensor may go right
// after: its memory is used again behind the kernel, on the same stream.
void Observer::count_on_gpu(const ObservedStep& step, uint32_t number, uint32_t site,
                            const TensorView& view, const cuda::GpuPlace& place) {
  try {
    std::string reason;
    cuda::GpuObserver* observer = gpus(reason);
    const cuda::ObservationLabels labels{number, site, step.kind, step.weight};
    TensorView rows = view;
    bool is_read = observer != nullptr;
    bool is_done = step.weight == 0;
    if (is_read && has_open_captures(*recorder_)) {
      const bool by_row = by_row_ && step.rows == step.batch_rows && split_rows(rows, step, false);
      is_done |= observer->capture(place, site, by_row ? rows : view, by_row, is_read, reason);
      rows = view;
    }
    if (is_done) {
      // It counts in the graph's replays, or nowhere.
    } else if (is_read && step.valid != nullptr && split_rows(rows, step, true)) {
      const int64_t first = by_row_ ? 0 : kAllRows;
      const int64_t end = by_row_ ? step.rows : kAllRows + 1;
      for (int64_t row = first; is_read && row < end; ++row) {
        is_read = observer->observe_runs(place, labels, rows, *step.valid, row, reason);
      }
    } else if (is_read) {
      const bool is_packed = step.rows != step.batch_rows;
      const bool by_row = by_row_ && !is_packed && split_rows(rows, step, false);
      is_read = observer->observe(place, labels, by_row ? rows : view, by_row, reason);
    }
    if (!is_read) skip(reason.substr(0, reason.find(';')).c_str());
  } catch (const std::exception&) {
    recorder_->count_fault();
  }
}

bool Observer::current_stream(cuda::GpuPlace& place) {
  std::string reason;
  const bool is_found =
      find_current_stream(calls_->current_stream.ptr(), *recorder_, place, reason);
  if (!reason.empty()) skip(reason.c_str());
  return is_found;
}

cuda::GpuObserver* Observer::gpus(std::string& reason) {
  if (gpus_ == nullptr) {
    cuda::StatsDevices* devices = stats_devices(reason);
    if (devices == nullptr) return nullptr;
    gpus_ = std::make_shared<cuda::GpuObserver>(*devices);
    recorder_->set_observation_source(gpus_);
  }
  return gpus_.get();
}

void Observer::prepare(int device) {
  std::string reason;
  if (cuda::GpuObserver* observer = gpus(reason)) observer->prepare(device, reason);
}

void Observer::skip(const char* reason) {
  const Owned result(PyObject_CallFunction(calls_->skip.ptr(), "s", reason));
  if (!result) discard_error();
}

Observer* observer_of(PyObject* object) {
  try {
    return py::cast<Observer*>(py::handle(object));
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError, "not an Observer");
    return nullptr;
  }
}

void bind_observer(py::module_& m) {
  py::class_<Observer, std::shared_ptr<Observer>>(m, "Observer")
      .def(py::init<std::shared_ptr<Recorder>, py::object, py::object, py::object, py::object,
                    bool>(),
           py::kw_only(), py::arg("recorder"), py::arg("read_elsewhere"), py::arg("current_stream"),
           py::arg("skip"), py::arg("choose"), py::arg("by_row"))
      .def("prepare", &Observer::prepare, py::arg("device"))
      .def("end_capture", &Observer::end_capture)
      .def("hold_executable", &Observer::hold_executable)
      .def("release_executable", &Observer::release_executable)
      .def(
          "observe",
          [](Observer& observer, uint32_t site, const py::object& value) {
            observer.observe_value(site, value.ptr());
          },
          py::arg("site"), py::arg("value"));
  m.def(
      "learn_torch",
      [](const py::type& tensor_type, const py::type& parameter_type, const py::dict& formats,
         const py::object& strided, const py::object& get_tracing_state) {
        learn_torch(tensor_type.ptr(), parameter_type.ptr(), formats.ptr(), strided.ptr(),
                    get_tracing_state.ptr());
      },
      py::arg("tensor_type"), py::arg("parameter_type"), py::arg("formats"), py::arg("strided"),
      py::arg("get_tracing_state"));
  m.def(
      "intern_region",
      [](const std::string& name) { return intern_site(SiteCategory::kRegion, name); },
      py::arg("name"));
}

}  // namespace pertoken::bindings
