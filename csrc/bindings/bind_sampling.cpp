#include "bindings/bind_sampling.h"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings/call_slots.h"
#include "bindings/named_values.h"
#include "bindings/span_call.h"
#include "bindings/without_gil.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

using CostsNs = std::tuple<double, double, double, double>;

// `observed`: what observing a step is thought to take, its largest probability, and whether
// anything is observed from the start. `logits`: likewise; none where none are read.
void sample(Recorder& recorder, double budget, const CostsNs& costs_ns,
            const std::vector<std::tuple<uint32_t, double>>& levels,
            std::tuple<double, double, bool> observed,
            std::optional<std::tuple<double, double>> logits, uint64_t seed) {
  if (recorder.active() || recorder.sampler() != nullptr) {
    throw std::runtime_error("a recorder is told once to sample, before it runs");
  }
  if (levels.size() > kMaxSampleLevels) {
    throw std::invalid_argument("give up to three levels of detail");
  }
  const auto [step_ns, span_ns, skip_ns, drain_ns] = costs_ns;
  SamplerOptions options;
  options.budget = budget;
  options.costs = {step_ns, span_ns, skip_ns, drain_ns};
  options.seed = seed;
  auto& spans = options.details[static_cast<size_t>(SampleDetail::kSpans)];
  for (const auto& [detail, calls] : levels) spans.levels.push_back({detail, calls, 0.0});
  auto& observations = options.details[static_cast<size_t>(SampleDetail::kObservations)];
  const auto [observe_ns, most_observed, observes] = observed;
  observations = {{{kDetailActivations, 0.0, observe_ns}}, most_observed, observes};
  if (logits) {
    const auto [logits_ns, most_read] = *logits;
    options.details[static_cast<size_t>(SampleDetail::kLogits)] = {
        {{kDetailLogits, 0.0, logits_ns}}, most_read};
  }
  recorder.sample(options);
}

py::dict detail_row(const DetailReport& row, size_t levels) {
  const auto first = [&](const auto& values) {
    py::list list;
    for (size_t level = 0; level < levels; ++level) list.append(values[level]);
    return list;
  };
  NamedValues result;
  result["decided"] = row.decided;
  result["detailed"] = first(row.detailed);
  result["rates"] = first(row.rates);
  result["floor"] = row.floor;
  result["detail_ns"] = row.detail_ns;
  result["pairs"] = row.pairs;
  result["is_measured"] = row.is_measured;
  result["measured_ns"] = row.measured_ns;
  result["low_ns"] = row.low_ns;
  result["high_ns"] = row.high_ns;
  return result;
}

// None where the recorder does not sample. Kinds are by number, details in the order of
// SampleDetail, rates by level.
py::object sampling(Recorder& recorder) {
  if (recorder.sampler() == nullptr) return py::none();
  SamplerReport report;
  without_gil([&] { report = recorder.sampling(); });
  NamedValues result;
  result["budget"] = report.budget;
  const SampleCosts& costs = report.costs;
  result["costs_ns"] = py::make_tuple(costs.step_ns, costs.span_ns, costs.skip_ns, costs.drain_ns);
  result["drain_ns"] = report.drain_ns;
  py::dict strata;
  for (size_t kind = 0; kind < report.strata.size(); ++kind) {
    const StratumReport& row = report.strata[kind];
    if (row.steps == 0) continue;
    NamedValues stratum;
    stratum["steps"] = row.steps;
    stratum["step_ns"] = row.step_ns;
    stratum["plain_ns"] = row.plain_ns;
    stratum["undetailed_steps"] = row.undetailed_steps;
    stratum["undetailed_ns"] = row.undetailed_ns;
    stratum["passed_on"] = row.passed_on;
    stratum["moved"] = row.moved;
    stratum["moved_ns"] = row.moved_ns;
    py::list details;
    for (size_t detail = 0; detail < kSampleDetails; ++detail) {
      details.append(detail_row(row.details[detail], report.levels[detail].size()));
    }
    stratum["details"] = details;
    strata[py::int_(kind)] = py::dict(stratum);
  }
  result["strata"] = strata;
  return result;
}

SpanCall& span_call_of(const py::handle& object) {
  const py::object type = py::module_::import("pertoken._native").attr("SpanCall");
  if (!py::isinstance(object, type)) throw py::type_error("not a SpanCall");
  return *reinterpret_cast<SpanCall*>(object.ptr());
}

}  // namespace

void bind_sampling(py::module_& m,
                   py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class
      .def("sample", &sample, py::kw_only(), py::arg("budget"), py::arg("costs_ns"),
           py::arg("levels"), py::arg("observed"), py::arg("logits"), py::arg("seed"))
      .def("sampling", &sampling)
      .def(
          "let_step_aside",
          [](Recorder& recorder, const py::str& slot, const py::object& call) {
            SpanCall& wrapper = span_call_of(call);
            if (wrapper.recorder != &recorder) throw py::value_error("another recorder's wrapper");
            if (recorder.call_slots() == nullptr) {
              recorder.set_call_slots(std::make_shared<CallSlots>(slot.ptr()));
            }
            recorder.call_slots()->add(wrapper);
          },
          py::arg("slot"), py::arg("call"))
      .def("forget_wrappers", [](Recorder& recorder) {
        CallSlots* slots = recorder.call_slots();
        if (slots == nullptr) return;
        slots->put_back();
        slots->forget();
      });
  m.def("hold_wrappers", &CallSlots::hold);
  m.def("release_wrappers", &CallSlots::release);
  m.attr("DETAIL_LAYERS") = kDetailLayers;
  m.attr("DETAIL_ALL") = kDetailAll;
}

}  // namespace pertoken::bindings
