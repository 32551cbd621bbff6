#include "bindings/bind_spool.h"

#include <pybind11/numpy.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "bindings/without_gil.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

using ClockRows = py::array_t<int64_t, py::array::c_style>;

void spool_into(Recorder& recorder, const std::string& folder, size_t segment_bytes,
                size_t segments) {
  try {
    without_gil([&] { recorder.spool_into({folder, segment_bytes, segments}); });
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, folder.c_str());
    throw py::error_already_set();
  }
}

void spool_note(Recorder& recorder, int scope, uint64_t key, std::string_view json) {
  if (scope < 0 || scope > static_cast<int>(NoteScope::kCloses)) throw py::value_error("scope");
  if (Spool* spool = recorder.spool()) spool->note(static_cast<NoteScope>(scope), key, json);
}

void replay_clock(Recorder& recorder, const ClockRows& rows) {
  if (rows.ndim() != 2 || rows.shape(1) != 3) {
    throw py::value_error("samples must have the shape (n, 3)");
  }
  const auto at = rows.unchecked<2>();
  std::vector<ClockSample> samples;
  samples.reserve(static_cast<size_t>(at.shape(0)));
  for (py::ssize_t i = 0; i < at.shape(0); ++i) {
    samples.push_back({static_cast<uint64_t>(at(i, 0)), at(i, 1), static_cast<uint64_t>(at(i, 2))});
  }
  without_gil([&] { recorder.replay_clock(samples); });
}

bool replay(Recorder& recorder, int32_t track, int64_t tid, const std::string& thread_name,
            int64_t last_step, int64_t last_seq, bool goes_on, const py::bytes& records) {
  const std::string_view bytes = records;
  if (bytes.size() % sizeof(Record) != 0) throw py::value_error("not a number of records");
  bool is_sound = false;
  without_gil([&] {
    std::vector<Record> copied(bytes.size() / sizeof(Record));
    if (!copied.empty()) std::memcpy(copied.data(), bytes.data(), bytes.size());
    is_sound = recorder.replay({.track = track,
                                .tid = tid,
                                .thread_name = thread_name,
                                .first_index = 0,
                                .last_step = last_step,
                                .last_seq = last_seq,
                                .records = copied},
                               goes_on);
  });
  return is_sound;
}

uint32_t intern(int category, const std::string& name) {
  if (category < 0 || category > static_cast<int>(SiteCategory::kGenerate)) {
    throw py::value_error("category");
  }
  return intern_site(static_cast<SiteCategory>(category), name);
}

}  // namespace

void bind_spool(py::module_& m, py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class
      .def("spool_into", &spool_into, py::arg("folder"), py::arg("segment_bytes"),
           py::arg("segments"))
      .def("spool_note", &spool_note, py::arg("scope"), py::arg("key"), py::arg("json"))
      .def("replay_clock", &replay_clock, py::arg("samples"))
      .def("replay_from", &Recorder::replay_from, py::arg("first_step"))
      .def("replay_round", &Recorder::replay_round)
      .def("replay", &replay, py::kw_only(), py::arg("track"), py::arg("tid"),
           py::arg("thread_name"), py::arg("last_step"), py::arg("last_seq"), py::arg("goes_on"),
           py::arg("records"))
      .def(
          "replay_losses",
          [](Recorder& recorder, uint64_t dropped, uint64_t recording, uint64_t collector,
             uint64_t observations) {
            recorder.replay_losses({dropped, recording, collector, 0}, observations);
          },
          py::arg("records_dropped"), py::arg("recording_faults"), py::arg("collector_faults"),
          py::arg("observations_dropped"))
      .def(
          "replay_observation",
          [](Recorder& recorder, const py::bytes& frame, uint32_t site) {
            const std::string_view bytes = frame;
            return recorder.replay_observation(bytes_of(bytes), site);
          },
          py::arg("frame"), py::arg("site"));
  m.def("intern_site", &intern, py::arg("category"), py::arg("name"));
}

}  // namespace pertoken::bindings
