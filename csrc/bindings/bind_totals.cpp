#include "bindings/bind_totals.h"

#include <pybind11/stl.h>

#include <chrono>
#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/named_values.h"
#include "bindings/observation_columns.h"
#include "bindings/without_gil.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

// So many rows take about 0.1 ms, for which the threads of the model may have to wait.
constexpr size_t kRowsAtOnce = 64;

// Lets threads that wait for the GIL have it. Released alone, it would be taken again at once.
void let_others_run() {
  without_gil([] { std::this_thread::sleep_for(std::chrono::microseconds(50)); });
}

py::dict step_totals(const StepTotals& totals) {
  NamedValues row;
  row["begun"] = totals.begun;
  row["failed"] = totals.failed;
  row["detailed"] = totals.detailed;
  row["rows"] = totals.rows;
  row["tokens_in"] = totals.tokens_in;
  row["tokens_committed"] = totals.tokens_committed;
  row["wall_ns"] = py::cast(totals.wall_ns);
  row["itl_ns"] = py::cast(totals.itl_ns);
  return row;
}

py::dict request_totals(const RequestTotals& totals) {
  NamedValues row;
  row["started"] = totals.started;
  row["finished"] = totals.finished;
  row["failed"] = totals.failed;
  row["tokens_in"] = totals.tokens_in;
  row["tokens_out"] = totals.tokens_out;
  row["duration_ns"] = py::cast(totals.duration_ns);
  row["ttft_ns"] = py::cast(totals.ttft_ns);
  row["tpot_ns"] = py::cast(totals.tpot_ns);
  row["itl_ns"] = py::cast(totals.itl_ns);
  py::dict steps;
  for (size_t kind = 0; kind < totals.step_ns.size(); ++kind) {
    if (totals.step_ns[kind].count() > 0) steps[py::int_(kind)] = py::cast(totals.step_ns[kind]);
  }
  row["step_ns"] = steps;
  return row;
}

// The category of a site and its name; -1 and an empty one of those beyond the bound.
py::tuple site_name(const std::vector<SiteName>& names, uint32_t site) {
  if (site == kOtherSite) return py::make_tuple(-1, "");
  return py::make_tuple(static_cast<int>(names[site].category), names[site].name);
}

// By site and kind; of a signal, which is none of the sites, by its number.
py::list value_totals(std::vector<ValueTotals>& totals, const std::vector<SiteName>& names) {
  py::list values;
  for (ValueTotals& site : totals) {
    const py::object name =
        names.empty() ? py::object(py::int_(site.site)) : site_name(names, site.site);
    values.append(py::make_tuple(name, static_cast<int>(site.kind), site.observations, site.weight,
                                 site.weighted_count, site.weighted_sum, site.weighted_sum_sq,
                                 py::cast(std::move(site.values))));
    if (values.size() % kRowsAtOnce == 0) let_others_run();
  }
  return values;
}

// Kinds and label sets are numbers.
py::dict totals(Recorder& recorder) {
  RecorderTotals snapshot;
  std::vector<SiteName> names;
  without_gil([&] {
    snapshot = recorder.totals();
    names = site_names();  // after it: names only come
  });
  py::dict steps;
  for (size_t kind = 0; kind < snapshot.steps.size(); ++kind) {
    if (snapshot.steps[kind].begun > 0) steps[py::int_(kind)] = step_totals(snapshot.steps[kind]);
  }
  py::list sites;
  for (SiteTotals& site : snapshot.sites) {
    sites.append(py::make_tuple(site_name(names, site.site), static_cast<int>(site.kind),
                                static_cast<uint64_t>(std::llround(site.own_ns)),
                                py::cast(std::move(site.dur_ns))));
    if (sites.size() % kRowsAtOnce == 0) let_others_run();
  }
  py::list requests;
  for (const RequestTotals& of_labels : snapshot.requests) {
    requests.append(request_totals(of_labels));
  }
  NamedValues losses;
  losses["records_dropped"] = snapshot.losses.records_dropped;
  losses["observations_dropped"] = snapshot.losses.observations_dropped;
  losses["device_observations"] = device_observation_losses(snapshot.losses.device_observations);
  losses["device_logits"] = device_observation_losses(snapshot.losses.device_logits);
  losses["observations_evicted"] = snapshot.losses.observations_evicted;
  losses["spans_evicted"] = snapshot.losses.spans_evicted;
  losses["steps_evicted"] = snapshot.losses.steps_evicted;
  losses["recording_faults"] = snapshot.losses.recording_faults;
  losses["collector_faults"] = snapshot.losses.collector_faults;
  losses["requests_uncounted"] = snapshot.requests_uncounted;
  losses["tokens_uncounted"] = snapshot.tokens_uncounted;
  NamedValues result;
  result["steps"] = steps;
  result["sites"] = sites;
  result["activations"] = value_totals(snapshot.values, names);
  result["logits"] = value_totals(snapshot.logits, {});
  result["requests"] = requests;
  result["losses"] = losses;
  return result;
}

}  // namespace

void bind_totals(py::module_& m, py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class.def("totals", &totals)
      .def(
          "begin_request",
          [](Recorder& recorder, uint32_t request, uint32_t label_set, uint64_t start_ticks) {
            recorder.request_events().push(RequestBegin{request, label_set, start_ticks});
          },
          py::arg("request"), py::arg("label_set"), py::arg("start_ticks"))
      .def(
          "begin_generation",
          [](Recorder& recorder, uint32_t generation, uint32_t request, bool by_generate,
             bool by_rows, bool can_end_rows, bool is_beam_search,
             std::tuple<int64_t, int64_t, int64_t> prompt) {
            const auto [rows, length, tokens] = prompt;
            const CommitSource source = by_generate ? CommitSource::kGenerate
                                        : by_rows   ? CommitSource::kRows
                                                    : CommitSource::kDeclared;
            recorder.request_events().push(GenerationBegin{
                generation, request, source, can_end_rows, is_beam_search, rows, length, tokens});
          },
          py::kw_only(), py::arg("generation"), py::arg("request"), py::arg("by_generate"),
          py::arg("by_rows"), py::arg("can_end_rows"), py::arg("is_beam_search"), py::arg("prompt"))
      .def(
          "end_generation",
          [](Recorder& recorder, uint32_t generation, uint64_t first_commit_ticks, bool has_failed,
             bool is_delegated, bool commits_known,
             std::optional<std::vector<uint32_t>> row_lengths) {
            recorder.request_events().push(GenerationEnd{generation, first_commit_ticks, has_failed,
                                                         is_delegated, commits_known,
                                                         std::move(row_lengths)});
          },
          py::kw_only(), py::arg("generation"), py::arg("first_commit_ticks"),
          py::arg("has_failed"), py::arg("is_delegated"), py::arg("commits_known"),
          py::arg("row_lengths"))
      .def(
          "end_request",
          [](Recorder& recorder, uint32_t request, uint64_t end_ticks, bool has_failed) {
            recorder.request_events().push(RequestEnd{request, end_ticks, has_failed});
          },
          py::arg("request"), py::arg("end_ticks"), py::arg("has_failed"));
  m.attr("MAX_LABEL_SETS") = kMaxLabelSets;
}

}  // namespace pertoken::bindings
