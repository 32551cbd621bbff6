// The clock in Python: what it is on this machine, and the fits as functions of arrays, for
// `pertoken doctor` and for property tests. Called off the hot path, under the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bindings/module.h"
#include "bindings/named_values.h"
#include "core/clock.h"
#include "core/clock_calibrator.h"
#include "core/clock_map.h"

namespace py = pybind11;

namespace pertoken::bindings {
namespace {

// Any strides; the dtype must match, so that no float is cut to an integer.
using Int64Array = py::array_t<int64_t, 0>;
using Uint64Array = py::array_t<uint64_t, 0>;

const char* source_name() { return clock_source() == ClockSource::kTsc ? "tsc" : "steady"; }

py::dict clock_info() {
  const ClockMap map = ClockCalibrator().map();
  NamedValues info;
  info["source"] = source_name();
  info["reason"] = clock_source_reason();
  info["ticks_per_second"] = map.ticks_per_second();
  info["error_bound_ns"] = map.error_bound_ns();
  return info;
}

std::vector<ClockSample> samples_from(const Int64Array& rows) {
  if (rows.ndim() != 2 || rows.shape(1) != 3) {
    throw py::value_error("samples must have the shape (n, 3)");
  }
  const auto at = rows.unchecked<2>();
  std::vector<ClockSample> samples;
  samples.reserve(static_cast<size_t>(at.shape(0)));
  for (py::ssize_t i = 0; i < at.shape(0); ++i) {
    if (at(i, 0) < 0 || at(i, 2) < 0) throw py::value_error("ticks must not be negative");
    samples.push_back({static_cast<uint64_t>(at(i, 0)), at(i, 1), static_cast<uint64_t>(at(i, 2))});
  }
  return samples;
}

py::array_t<int64_t> to_ns(const ClockMap& map, const Uint64Array& ticks) {
  if (ticks.ndim() != 1) throw py::value_error("ticks must have one dimension");
  const auto from = ticks.unchecked<1>();
  py::array_t<int64_t> ns(from.shape(0));
  auto to = ns.mutable_unchecked<1>();
  for (py::ssize_t i = 0; i < from.shape(0); ++i) to(i) = map.to_ns(from(i));
  return ns;
}

}  // namespace

void bind_clock(py::module_& m) {
  py::class_<ClockMap>(m, "ClockMap", "An immutable map from ticks to boot-clock nanoseconds.")
      .def("to_ns", &to_ns, py::arg("ticks").noconvert(),
           "Convert a 1-D uint64 array of ticks to an int64 array of nanoseconds.")
      .def(
          "extend",
          [](const ClockMap& map, const Int64Array& samples, uint64_t from_ticks) {
            return extend(map, samples_from(samples), from_ticks);
          },
          py::arg("samples").noconvert(), py::arg("from_ticks"),
          "The map refitted to samples as of fit_clock(), unchanged up to from_ticks.")
      .def(
          "trim", [](const ClockMap& map, uint64_t oldest) { return trim(map, oldest); },
          py::arg("oldest_ticks"), "The map without what lies wholly before oldest_ticks.")
      .def_property_readonly("error_bound_ns", &ClockMap::error_bound_ns,
                             "Largest error between the samples; 2**63 - 1 when unknown.")
      .def_property_readonly("rate_error", &ClockMap::rate_error,
                             "Error added for each nanosecond past the last sample.")
      .def_property_readonly("ticks_per_second", &ClockMap::ticks_per_second, "The current rate.")
      .def_property_readonly("segments", &ClockMap::segments, "The number of segments.")
      .def_property_readonly("steps", &ClockMap::steps,
                             "The number of steps of the boot clock that were followed.")
      .def_property_readonly("largest_step_ns", &ClockMap::largest_step_ns,
                             "The size of the largest of them.");

  m.def("clock_info", &clock_info,
        "The clock in use, as a new dict: source (\"tsc\" or \"steady\"), reason (a sentence), "
        "ticks_per_second and error_bound_ns, measured now, over 2 ms.");
  m.def("clock_source", &source_name, "The clock in use: \"tsc\" or \"steady\".");
  m.def("now_ticks", &now_ticks, "The current tick of the clock in use.");
  m.def(
      "fit_clock",
      [](const Int64Array& samples, double nominal_ns_per_tick) {
        return fit(samples_from(samples), nominal_ns_per_tick);
      },
      py::arg("samples").noconvert(), py::arg("nominal_ns_per_tick") = 1.0,
      "Fit a ClockMap to an int64 array of shape (n, 3), in any order: ticks before, boot-clock "
      "nanoseconds, ticks after. Raises ValueError for another shape and for negative ticks, "
      "TypeError for another dtype.");
}

}  // namespace pertoken::bindings
