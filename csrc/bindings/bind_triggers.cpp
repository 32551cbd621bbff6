#include "bindings/bind_triggers.h"

#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <tuple>
#include <vector>

#include "bindings/named_values.h"
#include "bindings/without_gil.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

using Learned = std::vector<std::tuple<uint32_t, double, double, uint64_t>>;

uint64_t arm(Recorder& recorder, const StepTriggers::Times& fixed_ns, const Learned& learned,
             bool nans, bool infinities) {
  std::vector<LearnedTime> times;
  for (const auto& [kind, quantile, factor, min_steps] : learned) {
    times.push_back({step_kind(kind), quantile, factor, min_steps});
  }
  uint64_t armed = 0;
  without_gil(
      [&] { armed = recorder.arm_triggers(fixed_ns, std::move(times), {nans, infinities}); });
  return armed;
}

void tell_values(NamedValues& told, const FiredTrigger& trigger) {
  told["reason"] = "non_finite";
  const std::vector<SiteName> sites = site_names();
  told["site"] = trigger.site < sites.size() ? sites[trigger.site].name : "";
  told["nans"] = trigger.nans;
  told["infs"] = trigger.infinities;
  if (trigger.row != kAllRows) told["row"] = trigger.row;
  if (trigger.step == kNoStep) return;
  told["step"] = trigger.step;
  told["kind"] = static_cast<int>(trigger.kind);
}

void tell_time(NamedValues& told, const FiredTrigger& trigger) {
  told["reason"] = trigger.cause == TriggerCause::kStepTime ? "step_time" : "slow_step";
  told["step"] = trigger.step;
  told["kind"] = static_cast<int>(trigger.kind);
  told["wall_ns"] = trigger.wall_ns;
  told["over_ns"] = trigger.over_ns;
}

// The first that fired, and how many others. Kinds are numbers. None: nothing fired.
py::object wait(Recorder& recorder, double timeout_s, uint64_t armed) {
  std::optional<FiredTriggers> taken;
  const std::chrono::duration<double> timeout(timeout_s);
  without_gil([&] { taken = recorder.wait_for_trigger(timeout, armed); });
  if (!taken) return py::none();
  const FiredTrigger& trigger = taken->first;
  NamedValues told;
  if (trigger.cause == TriggerCause::kSignal) {
    told["reason"] = "signal";
    told["signal"] = trigger.signal;
  } else if (trigger.cause == TriggerCause::kNonFinite) {
    tell_values(told, trigger);
  } else {
    tell_time(told, trigger);
  }
  told["others"] = taken->others;
  return told;
}

}  // namespace

void bind_triggers(py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class
      .def("arm_triggers", &arm, py::kw_only(), py::arg("fixed_ns"), py::arg("learned"),
           py::arg("nans"), py::arg("infinities"))
      .def("disarm_triggers",
           [](Recorder& recorder) { without_gil([&] { recorder.disarm_triggers(); }); })
      .def("fire_trigger", &Recorder::fire_trigger, py::arg("signal"))
      .def("wait_for_trigger", &wait, py::arg("timeout_s"), py::arg("armed"));
}

}  // namespace pertoken::bindings
