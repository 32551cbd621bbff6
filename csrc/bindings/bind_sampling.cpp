#include "bindings/bind_sampling.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings/without_gil.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

void sample(Recorder& recorder, double budget, std::tuple<double, double, double, double> costs_ns,
            const std::vector<std::tuple<uint32_t, double>>& levels, uint64_t seed) {
  if (recorder.active() || recorder.sampler() != nullptr) {
    throw std::runtime_error("a recorder is told once to sample, before it runs");
  }
  if (levels.empty() || levels.size() > kMaxSampleLevels) {
    throw std::invalid_argument("give one to three levels of detail");
  }
  const auto [step_ns, span_ns, skip_ns, drain_ns] = costs_ns;
  SamplerOptions options;
  options.budget = budget;
  options.costs = {step_ns, span_ns, skip_ns, drain_ns};
  options.seed = seed;
  for (const auto& [detail, calls] : levels) options.levels.push_back({detail, calls, 0.0});
  recorder.sample(options);
}

py::dict stratum(const StratumReport& row, size_t levels) {
  const auto first = [&](const auto& values) {
    py::list list;
    for (size_t level = 0; level < levels; ++level) list.append(values[level]);
    return list;
  };
  py::dict result;
  result["steps"] = row.steps;
  result["step_ns"] = row.step_ns;
  result["detailed"] = first(row.detailed);
  result["rates"] = first(row.rates);
  result["floor"] = row.floor;
  result["plain_ns"] = row.plain_ns;
  result["detail_ns"] = row.detail_ns;
  result["pairs"] = row.pairs;
  result["is_measured"] = row.is_measured;
  result["measured_ns"] = row.measured_ns;
  result["low_ns"] = row.low_ns;
  result["high_ns"] = row.high_ns;
  return result;
}

// None where the recorder does not sample. Kinds are by number, rates by level.
py::object sampling(Recorder& recorder) {
  if (recorder.sampler() == nullptr) return py::none();
  SamplerReport report;
  without_gil([&] { report = recorder.sampling(); });
  py::dict result;
  result["budget"] = report.budget;
  result["levels"] = report.levels;
  const SampleCosts& costs = report.costs;
  result["costs_ns"] = py::make_tuple(costs.step_ns, costs.span_ns, costs.skip_ns, costs.drain_ns);
  result["drain_ns"] = report.drain_ns;
  py::dict strata;
  for (size_t kind = 0; kind < report.strata.size(); ++kind) {
    if (report.strata[kind].steps > 0) {
      strata[py::int_(kind)] = stratum(report.strata[kind], report.levels.size());
    }
  }
  result["strata"] = strata;
  return result;
}

}  // namespace

void bind_sampling(py::module_& m,
                   py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class
      .def("sample", &sample, py::kw_only(), py::arg("budget"), py::arg("costs_ns"),
           py::arg("levels"), py::arg("seed"))
      .def("sampling", &sampling);
  m.attr("DETAIL_LAYERS") = kDetailLayers;
  m.attr("DETAIL_ALL") = kDetailAll;
}

}  // namespace pertoken::bindings
