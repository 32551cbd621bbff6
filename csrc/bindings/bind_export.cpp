// Binds the trace writer: checks numpy columns, then writes with the GIL released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <deque>
#include <exception>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "bindings/module.h"
#include "export/chrome_trace.h"

namespace py = pybind11;

namespace pertoken::bindings {
namespace {

using exporting::ChromeTrace;
using exporting::EscapedStrings;

// Hands a table's columns out as plain pointers, each checked. The arrays stay alive with it.
class ColumnSource {
 public:
  ColumnSource(const py::dict& tables, const char* table, const EscapedStrings& strings)
      : table_(table), strings_(strings) {
    if (!tables.contains(table)) throw py::value_error(std::string("no table '") + table + "'");
    columns_ = tables[table].cast<py::dict>();
  }

  template <typename T>
  void plain(const py::str& name, const T*& column) {
    if (!columns_.contains(name)) throw py::value_error(label(name) + " is missing");
    const py::object array = columns_[name];
    if (!py::isinstance<py::array_t<T>>(array)) {
      throw py::type_error(label(name) + " must be a numpy array of " +
                           py::str(py::dtype::of<T>()).cast<std::string>());
    }
    const auto values = py::reinterpret_borrow<py::array>(array);
    if (values.ndim() != 1) throw py::value_error(label(name) + " must have one dimension");
    if (!(values.flags() & py::array::c_style)) {
      throw py::value_error(label(name) + " must be contiguous");
    }
    const auto size = static_cast<size_t>(values.shape(0));
    if (size_ != kUnknown && size != size_) {
      throw py::value_error(label(name) + " has " + std::to_string(size) + " rows, not " +
                            std::to_string(size_));
    }
    size_ = size;
    column = static_cast<const T*>(values.data());
    kept_.push_back(array);
  }

  void coded(const py::str& name, const int32_t*& codes) {
    plain(name, codes);
    const int64_t count = static_cast<int64_t>(strings_.size());
    const bool valid = std::all_of(codes, codes + size_,
                                   [count](int32_t code) { return code >= -1 && code < count; });
    if (!valid) throw py::value_error(label(name) + " has codes outside the table of strings");
  }

  // Keys of the columns whose names begin with `prefix`.
  std::vector<py::str> keys_with(const char* prefix) const {
    std::vector<py::str> keys;
    for (const auto& [key, column] : columns_) {
      if (key.attr("startswith")(prefix).cast<bool>()) keys.emplace_back(key);
    }
    return keys;
  }

  // Numbers of processes, of which there are `count`.
  void processes(const py::str& name, size_t count, const int32_t*& numbers) {
    plain(name, numbers);
    const bool valid = std::all_of(numbers, numbers + size_, [count](int32_t number) {
      return number >= 0 && static_cast<size_t>(number) < count;
    });
    if (!valid) throw py::value_error(label(name) + " has numbers that are no process's");
  }

  size_t size() const { return size_; }

 private:
  static constexpr size_t kUnknown = std::numeric_limits<size_t>::max();

  std::string label(const py::str& name) const {
    return "column " + py::repr(name).cast<std::string>() + " of table '" + table_ + "'";
  }

  const char* table_;
  const EscapedStrings& strings_;
  py::dict columns_;
  size_t size_ = kUnknown;
  std::vector<py::object> kept_;
};

// UTF-8, lone surrogates included: as three bytes each, which the writer replaces.
std::string utf8(const py::handle& text) {
  if (!PyUnicode_Check(text.ptr())) throw py::type_error("strings must be str");
  const auto bytes = py::reinterpret_steal<py::object>(
      PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogatepass"));
  if (!bytes) throw py::error_already_set();
  return {PyBytes_AS_STRING(bytes.ptr()), static_cast<size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

// Calls a Python function with each chunk. An exception of its own is kept, to be raised later.
class CallbackSink final : public exporting::Sink {
 public:
  explicit CallbackSink(py::function callback) : callback_(std::move(callback)) {}

  bool write(const char* data, size_t size) override {
    const py::gil_scoped_acquire gil;
    try {
      callback_(py::bytes(data, size));
      return true;
    } catch (...) {
      error_ = std::current_exception();
      return false;
    }
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  py::function callback_;
  std::exception_ptr error_;
};

// The names of labels are put in `label_names`, to which `requests` refers.
void read_requests(ColumnSource& source, size_t processes, exporting::RequestColumns& requests,
                   std::vector<std::string>& label_names) {
  source.plain("request", requests.request);
  source.coded("id", requests.id);
  source.coded("model_version", requests.model_version);
  source.plain("start_ns", requests.start_ns);
  source.plain("end_ns", requests.end_ns);
  source.plain("ttft_ns", requests.ttft_ns);
  source.plain("rows", requests.rows);
  source.plain("tokens_in", requests.tokens_in);
  source.plain("tokens_out", requests.tokens_out);
  source.coded("error", requests.error);
  source.processes("process", processes, requests.process);
  const std::vector<py::str> keys = source.keys_with("label.");
  label_names.reserve(keys.size());
  for (const py::str& key : keys) {
    label_names.push_back(utf8(key));
    requests.labels.push_back({label_names.back(), nullptr});
    source.coded(key, requests.labels.back().value);
  }
  requests.size = source.size();
}

void read_steps(ColumnSource& source, size_t processes, exporting::StepColumns& steps) {
  source.plain("step", steps.step);
  source.plain("request", steps.request);
  source.coded("kind", steps.kind);
  source.plain("start_ns", steps.start_ns);
  source.plain("wall_ns", steps.wall_ns);
  source.plain("gpu_ns", steps.gpu_ns);
  source.plain("rows", steps.rows);
  source.plain("tokens_in", steps.tokens_in);
  source.plain("tokens_committed", steps.tokens_committed);
  source.plain("context_len", steps.context_len);
  source.coded("error", steps.error);
  source.processes("process", processes, steps.process);
  steps.size = source.size();
}

void read_spans(ColumnSource& source, exporting::SpanColumns& spans) {
  source.plain("span", spans.span);
  source.plain("parent", spans.parent);
  source.plain("step", spans.step);
  source.coded("site", spans.site);
  source.coded("category", spans.category);
  source.plain("track", spans.track);
  source.plain("start_ns", spans.start_ns);
  source.plain("dur_ns", spans.dur_ns);
  source.plain("device", spans.device);
  spans.size = source.size();
}

void read_tracks(ColumnSource& source, exporting::TrackColumns& tracks) {
  source.plain("track", tracks.track);
  source.plain("pid", tracks.pid);
  source.plain("tid", tracks.tid);
  source.coded("name", tracks.name);
  tracks.size = source.size();
}

// Counters of one name, and what they refer to. At the same place to the end.
struct CounterSource {
  CounterSource(const py::dict& tables, std::string given, const EscapedStrings& strings)
      : name(std::move(given)), columns(tables, name.c_str(), strings) {}

  std::string name;
  ColumnSource columns;
  std::deque<std::string> series;
};

exporting::CounterColumns read_counters(CounterSource& source, size_t processes) {
  exporting::CounterColumns counters;
  counters.name = source.name;
  ColumnSource& columns = source.columns;
  columns.plain("time_ns", counters.time_ns);
  columns.processes("process", processes, counters.process);
  for (const py::str& key : columns.keys_with("")) {
    const std::string& name = source.series.emplace_back(utf8(key));
    if (name == "site") {
      columns.coded(key, counters.site);
    } else if (name != "time_ns" && name != "process") {
      counters.series.push_back({name, nullptr});
      columns.plain(key, counters.series.back().value);
    }
  }
  counters.size = columns.size();
  return counters;
}

void write_to(const ChromeTrace& trace, const py::object& target) {
  if (PyLong_Check(target.ptr())) {
    exporting::FileDescriptorSink sink(target.cast<int>());
    bool written;
    {
      const py::gil_scoped_release no_gil;
      written = exporting::write_chrome_trace(trace, sink);
    }
    if (written) return;
    errno = sink.error();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  if (!PyCallable_Check(target.ptr())) {
    throw py::type_error("target must be a file descriptor or a callable that takes bytes");
  }
  CallbackSink sink(py::reinterpret_borrow<py::function>(target));
  {
    const py::gil_scoped_release no_gil;
    exporting::write_chrome_trace(trace, sink);
  }
  sink.rethrow();
}

void write_chrome_trace(const py::dict& tables, const py::dict& counters,
                        const py::sequence& strings, const std::string& header_json,
                        const std::vector<std::pair<int64_t, py::str>>& processes,
                        const py::str& root_name, const py::object& target) {
  if (processes.empty()) throw py::value_error("a trace is of one process at least");
  EscapedStrings escaped;
  for (const py::handle text : strings) escaped.add(utf8(text));

  ChromeTrace trace;
  ColumnSource requests(tables, "requests", escaped);
  std::vector<std::string> label_names;
  read_requests(requests, processes.size(), trace.requests, label_names);
  ColumnSource steps(tables, "steps", escaped);
  read_steps(steps, processes.size(), trace.steps);
  ColumnSource spans(tables, "spans", escaped);
  read_spans(spans, trace.spans);
  ColumnSource tracks(tables, "tracks", escaped);
  read_tracks(tracks, trace.tracks);
  std::deque<CounterSource> counter_sources;
  for (const auto& [name, columns] : counters) {
    CounterSource& source = counter_sources.emplace_back(counters, utf8(name), escaped);
    trace.counters.push_back(read_counters(source, processes.size()));
  }
  constexpr size_t kMaxRows = std::numeric_limits<uint32_t>::max();
  if (trace.spans.size > kMaxRows || trace.requests.size + trace.steps.size > kMaxRows) {
    throw py::value_error("a trace takes fewer than 2^32 spans, and requests and steps");
  }

  std::vector<std::string> names;
  names.reserve(processes.size());
  for (const auto& [pid, name] : processes) {
    names.push_back(utf8(name));
    trace.processes.push_back({pid, names.back()});
  }
  const std::string root = utf8(root_name);
  trace.strings = &escaped;
  trace.header_json = header_json;
  trace.root_name = root;
  write_to(trace, target);
}

}  // namespace

void bind_export(py::module_& m) {
  m.def("write_chrome_trace", &write_chrome_trace, py::kw_only(), py::arg("tables"),
        py::arg("counters"), py::arg("strings"), py::arg("header_json"), py::arg("processes"),
        py::arg("root_name"), py::arg("target"),
        R"(Write a Chrome trace.

Args:
    tables: columns by name for each of the tables requests, steps, spans and tracks: contiguous
        numpy arrays of the schema's dtypes; codes between -1 and len(strings) - 1.
    counters: samples by the counter's name: time_ns int64, process int32, and a series float64
        in each further column but ``site``, int32 codes; the name then stands before a site's.
    strings: the strings that codes refer to.
    header_json: members of the outermost JSON object, serialised, without its braces.
    processes: the id under which each process is shown, and its name; at least one.
    root_name: shown for a module without a name.
    target: a file descriptor, or a callable that takes the bytes chunk by chunk.

Raises:
    TypeError, ValueError: a column is missing, or not of its type, length or range.
    OSError: a write failed. What the callable raises passes through.)");
}

}  // namespace pertoken::bindings
