#include "bindings/bind_totals.h"

#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings/without_gil.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

// A histogram of durations that nothing changes any longer.
struct LatencyCounts {
  ExpHistogram histogram;
};

LatencyCounts make_counts(int scale, int32_t offset, std::vector<uint64_t> counts, uint64_t zeros,
                          double sum, double min, double max) {
  if (!counts.empty()) {
    const int64_t last = int64_t{offset} + static_cast<int64_t>(counts.size()) - 1;
    if (last > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("a bucket's index does not fit");
    }
  }
  HistogramParts parts;
  parts.scale = scale;
  parts.zeros = zeros;
  parts.sum = sum;
  parts.min = min;
  parts.max = max;
  parts.positive.offset = counts.empty() ? 0 : offset;
  parts.positive.counts = std::move(counts);
  return {ExpHistogram(std::move(parts))};
}

LatencyCounts merged(const LatencyCounts& a, const LatencyCounts& b) {
  uint64_t count = 0;
  if (__builtin_add_overflow(a.histogram.count(), b.histogram.count(), &count)) {
    throw std::overflow_error("the counts do not add up in 64 bits");
  }
  LatencyCounts result = a;
  result.histogram.merge(b.histogram);
  return result;
}

LatencyCounts counts_of(std::vector<uint64_t> values_ns) {
  LatencyCounts result;
  for (const uint64_t ns : values_ns) result.histogram.record_ns(ns);
  return result;
}

py::object counts(const ExpHistogram& histogram) { return py::cast(LatencyCounts{histogram}); }

py::dict step_totals(const StepTotals& totals) {
  py::dict row;
  row["begun"] = totals.begun;
  row["failed"] = totals.failed;
  row["rows"] = totals.rows;
  row["tokens_in"] = totals.tokens_in;
  row["tokens_committed"] = totals.tokens_committed;
  row["wall_ns"] = counts(totals.wall_ns);
  row["itl_ns"] = counts(totals.itl_ns);
  return row;
}

py::dict request_totals(const RequestTotals& totals) {
  py::dict row;
  row["started"] = totals.started;
  row["finished"] = totals.finished;
  row["failed"] = totals.failed;
  row["tokens_in"] = totals.tokens_in;
  row["tokens_out"] = totals.tokens_out;
  row["duration_ns"] = counts(totals.duration_ns);
  row["ttft_ns"] = counts(totals.ttft_ns);
  row["tpot_ns"] = counts(totals.tpot_ns);
  row["itl_ns"] = counts(totals.itl_ns);
  py::dict steps;
  for (size_t kind = 0; kind < totals.step_ns.size(); ++kind) {
    if (totals.step_ns[kind].count() > 0) steps[py::int_(kind)] = counts(totals.step_ns[kind]);
  }
  row["step_ns"] = steps;
  return row;
}

// Kinds and sites are numbers, as are label sets; the site of those beyond the bound is -1.
py::dict totals(Recorder& recorder) {
  RecorderTotals snapshot;
  without_gil([&] { snapshot = recorder.totals(); });
  py::dict steps;
  for (size_t kind = 0; kind < snapshot.steps.size(); ++kind) {
    if (snapshot.steps[kind].begun > 0) steps[py::int_(kind)] = step_totals(snapshot.steps[kind]);
  }
  py::list sites;
  for (const SiteTotals& site : snapshot.sites) {
    const int64_t code = site.site == kOtherSite ? -1 : int64_t{site.site};
    sites.append(
        py::make_tuple(code, static_cast<int>(site.kind), site.own_ns, counts(site.dur_ns)));
  }
  py::list requests;
  for (const RequestTotals& of_labels : snapshot.requests) {
    requests.append(request_totals(of_labels));
  }
  py::dict losses;
  losses["records_dropped"] = snapshot.losses.records_dropped;
  losses["spans_evicted"] = snapshot.losses.spans_evicted;
  losses["steps_evicted"] = snapshot.losses.steps_evicted;
  losses["recording_faults"] = snapshot.losses.recording_faults;
  losses["collector_faults"] = snapshot.losses.collector_faults;
  losses["requests_uncounted"] = snapshot.requests_uncounted;
  losses["tokens_uncounted"] = snapshot.tokens_uncounted;
  py::dict result;
  result["steps"] = steps;
  result["sites"] = sites;
  result["requests"] = requests;
  result["losses"] = losses;
  return result;
}

}  // namespace

void bind_totals(py::module_& m, py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  py::class_<LatencyCounts>(m, "LatencyCounts")
      .def(py::init(&make_counts), py::arg("scale"), py::arg("offset"), py::arg("bucket_counts"),
           py::arg("zero_count"), py::arg("sum"), py::arg("min"), py::arg("max"))
      .def_static("of", &counts_of, py::arg("values_ns"))
      .def("merged", &merged, py::arg("other"))
      .def(
          "quantile", [](const LatencyCounts& self, double q) { return self.histogram.quantile(q); },
          py::arg("q"))
      .def_property_readonly("scale",
                             [](const LatencyCounts& self) { return self.histogram.scale(); })
      .def_property_readonly(
          "offset", [](const LatencyCounts& self) { return self.histogram.positive().offset; })
      .def_property_readonly(
          "bucket_counts",
          [](const LatencyCounts& self) { return self.histogram.positive().counts; })
      .def_property_readonly("zero_count",
                             [](const LatencyCounts& self) { return self.histogram.zero_count(); })
      .def_property_readonly("count",
                             [](const LatencyCounts& self) { return self.histogram.count(); })
      .def_property_readonly("sum", [](const LatencyCounts& self) { return self.histogram.sum(); })
      .def_property_readonly("min", [](const LatencyCounts& self) { return self.histogram.min(); })
      .def_property_readonly("max", [](const LatencyCounts& self) { return self.histogram.max(); });
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
             bool can_end_rows, bool is_beam_search, std::tuple<int64_t, int64_t, int64_t> prompt) {
            const auto [rows, length, tokens] = prompt;
            recorder.request_events().push(GenerationBegin{generation, request, by_generate,
                                                           can_end_rows, is_beam_search, rows,
                                                           length, tokens});
          },
          py::arg("generation"), py::arg("request"), py::arg("by_generate"),
          py::arg("can_end_rows"), py::arg("is_beam_search"), py::arg("prompt"))
      .def(
          "end_generation",
          [](Recorder& recorder, uint32_t generation, uint64_t first_commit_ticks, bool has_failed,
             bool is_delegated, bool commits_known,
             std::optional<std::vector<uint32_t>> row_lengths) {
            recorder.request_events().push(GenerationEnd{generation, first_commit_ticks, has_failed,
                                                         is_delegated, commits_known,
                                                         std::move(row_lengths)});
          },
          py::arg("generation"), py::arg("first_commit_ticks"), py::arg("has_failed"),
          py::arg("is_delegated"), py::arg("commits_known"), py::arg("row_lengths"))
      .def(
          "end_request",
          [](Recorder& recorder, uint32_t request, uint64_t end_ticks, bool has_failed) {
            recorder.request_events().push(RequestEnd{request, end_ticks, has_failed});
          },
          py::arg("request"), py::arg("end_ticks"), py::arg("has_failed"));
  m.attr("MAX_LABEL_SETS") = kMaxLabelSets;
}

}  // namespace pertoken::bindings
