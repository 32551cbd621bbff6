#include "bindings/snapshot_columns.h"

#include <algorithm>
#include <unordered_map>

#include "bindings/named_values.h"
#include "bindings/observation_columns.h"
#include "bindings/without_gil.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace py = pybind11;

namespace {

int64_t widened(uint32_t value) { return value == kNone32 ? -1 : int64_t{value}; }

bool is_held(const StoredSpan& span, int64_t first_step) {
  return span.step == kNoStep || span.step >= first_step;
}

py::dict span_columns(const RecorderSnapshot& snapshot, int64_t origin_ns) {
  const int64_t first_step = snapshot.store.first_step;
  size_t count = 0;
  for (const auto& chunk : snapshot.store.chunks) {
    if (!chunk->holds_steps_below(first_step)) {
      count += chunk->size();
      continue;
    }
    for (uint32_t i = 0; i < chunk->size(); ++i) count += is_held(chunk->at(i), first_step);
  }
  const auto length = static_cast<py::ssize_t>(count);
  std::unordered_map<int32_t, int32_t> device_of;
  for (const TrackInfo& track : snapshot.tracks) device_of[track.track] = track.device;
  NamedValues columns;
  auto* id = columns.column<int64_t>("span", length);
  auto* parent = columns.column<int64_t>("parent", length);
  auto* step = columns.column<int64_t>("step", length);
  auto* site = columns.column<int32_t>("site", length);
  auto* track = columns.column<int32_t>("track", length);
  auto* device = columns.column<int32_t>("device", length);
  auto* start_ns = columns.column<int64_t>("start_ns", length);
  auto* dur_ns = columns.column<int64_t>("dur_ns", length);
  without_gil([&] {
    size_t at = 0;
    for (const auto& chunk : snapshot.store.chunks) {
      const auto known = device_of.find(chunk->track());
      const int32_t on_device = known == device_of.end() ? -1 : known->second;
      for (uint32_t i = 0; i < chunk->size(); ++i) {
        const StoredSpan span = chunk->at(i);
        if (!is_held(span, first_step)) continue;
        const int64_t begin_ns = snapshot.clock.to_ns(span.start_ticks);
        const int64_t end_ns = snapshot.clock.to_ns(span.start_ticks + span.dur_ticks);
        id[at] = span_id(span.track, span.seq);
        parent[at] = span.parent_seq == 0 ? -1 : span_id(span.track, span.parent_seq);
        step[at] = span.step;
        start_ns[at] = begin_ns - origin_ns;
        dur_ns[at] = end_ns - begin_ns;
        site[at] = static_cast<int32_t>(span.site);
        track[at] = span.track;
        device[at] = on_device;
        ++at;
      }
    }
  });
  return columns;
}

py::dict step_columns(const RecorderSnapshot& snapshot, int64_t origin_ns) {
  size_t count = 0;
  for (const StepRow& row : snapshot.store.steps) count += row.begun;
  const auto length = static_cast<py::ssize_t>(count);
  NamedValues columns;
  const auto column = [&](const char* name, auto&& value) {
    auto* out = columns.column<int64_t>(name, length);
    for (const StepRow& row : snapshot.store.steps) {
      if (row.begun) *out++ = value(row);
    }
  };
  const ClockMap& clock = snapshot.clock;
  column("step", [](const StepRow& row) { return row.step; });
  column("generation", [](const StepRow& row) { return widened(row.generation); });
  column("kind", [](const StepRow& row) { return int64_t{row.detail & kStepKindMask}; });
  column("failed", [](const StepRow& row) { return int64_t{(row.detail & kStepFailed) != 0}; });
  column("mask_unread",
         [](const StepRow& row) { return int64_t{(row.detail & kStepMaskUnread) != 0}; });
  column("declared", [](const StepRow& row) { return int64_t{(row.detail & kStepDeclared) != 0}; });
  column("has_rows", [](const StepRow& row) { return int64_t{(row.detail & kStepHasRows) != 0}; });
  column("start_ns", [&](const StepRow& row) { return clock.to_ns(row.start_ticks) - origin_ns; });
  column("wall_ns", [&](const StepRow& row) {
    return row.end_ticks == 0 ? -1 : clock.to_ns(row.end_ticks) - clock.to_ns(row.start_ticks);
  });
  // Ticks are so short that their rate need not be that of the moment.
  column("observe_ns", [&](const StepRow& row) {
    return static_cast<int64_t>(static_cast<double>(row.observe_ticks) * 1e9 /
                                clock.ticks_per_second());
  });
  column("gpu_ns", [&](const StepRow& row) {
    return row.gpu_end_ticks == 0
               ? -1
               : clock.to_ns(row.gpu_end_ticks) - clock.to_ns(row.gpu_start_ticks);
  });
  // By the clock's error the device may seem to have begun before the host.
  column("launch_lag_ns", [&](const StepRow& row) {
    return row.gpu_end_ticks == 0 ? -1
                                  : std::max<int64_t>(0, clock.to_ns(row.gpu_start_ticks) -
                                                             clock.to_ns(row.start_ticks));
  });
  column("gpu_idle_ns", [&](const StepRow& row) {
    return row.gpu_end_ticks == 0 ? -1
                                  : clock.to_ns(row.gpu_start_ticks + row.gpu_idle_ticks) -
                                        clock.to_ns(row.gpu_start_ticks);
  });
  // The lengths are those of the first forward; of several, only what the user said holds.
  column("rows", [](const StepRow& row) {
    const bool is_open = (row.detail & (kStepSeveral | kStepRowsDeclared)) == kStepSeveral;
    return is_open ? -1 : widened(row.rows);
  });
  column("query_len", [](const StepRow& row) {
    return (row.detail & kStepSeveral) != 0 ? -1 : widened(row.query_len);
  });
  column("past", [](const StepRow& row) { return widened(row.past); });
  column("several", [](const StepRow& row) { return int64_t{(row.detail & kStepSeveral) != 0}; });
  column("committed", [](const StepRow& row) { return widened(row.committed); });
  column("bare", [](const StepRow& row) { return int64_t{(row.detail & kStepBare) != 0}; });
  column("committed_before", [](const StepRow& row) { return int64_t{row.committed_before}; });
  column("committed_is_total", [](const StepRow& row) { return int64_t{row.committed_is_total}; });
  column("track", [](const StepRow& row) { return int64_t{row.track}; });
  column("sampled", [](const StepRow& row) { return int64_t{(row.detail & kStepSampled) != 0}; });
  column("inside", [](const StepRow& row) { return int64_t{row.inside}; });
  auto* weight = columns.column<double>("weight", length);
  for (const StepRow& row : snapshot.store.steps) {
    if (row.begun) *weight++ = (row.detail & kStepSampled) != 0 ? row.weight : 1.0;
  }
  return columns;
}

py::dict row_valid_columns(const RecorderSnapshot& snapshot) {
  const auto length = static_cast<py::ssize_t>(snapshot.store.row_valid.size());
  NamedValues columns;
  auto* step = columns.column<int64_t>("step", length);
  auto* row = columns.column<int64_t>("row", length);
  auto* context_tokens = columns.column<int64_t>("context_tokens", length);
  auto* query_tokens = columns.column<int64_t>("query_tokens", length);
  for (const RowValid& valid : snapshot.store.row_valid) {
    *step++ = valid.step;
    *row++ = valid.row;
    *context_tokens++ = widened(valid.context_tokens);
    *query_tokens++ = valid.query_tokens;
  }
  return columns;
}

py::dict row_columns(const RecorderSnapshot& snapshot) {
  const auto length = static_cast<py::ssize_t>(snapshot.store.rows.size());
  NamedValues columns;
  const auto column = [&](const char* name, auto&& value) {
    auto* out = columns.column<int64_t>(name, length);
    for (const StoredRow& row : snapshot.store.rows) *out++ = value(row);
  };
  column("step", [](const StoredRow& row) { return row.step; });
  column("row", [](const StoredRow& row) { return int64_t{row.row}; });
  column("generation", [](const StoredRow& row) { return widened(row.generation); });
  column("phase", [](const StoredRow& row) { return int64_t{row.phase}; });
  column("query_len", [](const StoredRow& row) { return widened(row.query_len); });
  column("context_len", [](const StoredRow& row) { return widened(row.context_len); });
  return columns;
}

py::dict row_commit_columns(const RecorderSnapshot& snapshot) {
  const auto length = static_cast<py::ssize_t>(snapshot.store.row_commits.size());
  NamedValues columns;
  const auto column = [&](const char* name, auto&& value) {
    auto* out = columns.column<int64_t>(name, length);
    for (const RowCommit& commit : snapshot.store.row_commits) *out++ = value(commit);
  };
  column("step", [](const RowCommit& commit) { return commit.step; });
  column("row", [](const RowCommit& commit) { return int64_t{commit.row}; });
  column("committed_before",
         [](const RowCommit& commit) { return widened(commit.committed_before); });
  column("committed", [](const RowCommit& commit) { return int64_t{commit.committed}; });
  return columns;
}

py::dict token_logit_columns(const RecorderSnapshot& snapshot) {
  const auto length = static_cast<py::ssize_t>(snapshot.store.token_logits.size());
  NamedValues columns;
  const auto column = [&]<typename Number>(const char* name, Number, auto member) {
    auto* out = columns.column<Number>(name, length);
    for (const TokenLogits& token : snapshot.store.token_logits) {
      *out++ = static_cast<Number>(token.*member);
    }
  };
  column("step", int64_t{}, &TokenLogits::step);
  column("row", int64_t{}, &TokenLogits::row);
  column("place", int64_t{}, &TokenLogits::place);
  column("top1_prob", float{}, &TokenLogits::top1_prob);
  column("margin", float{}, &TokenLogits::margin);
  column("entropy", float{}, &TokenLogits::entropy);
  column("logprob", float{}, &TokenLogits::logprob);
  column("weight", float{}, &TokenLogits::weight);
  return columns;
}

py::object error_bound(const ClockMap& clock) {
  if (clock.error_bound_ns() == kClockErrorUnknown) return py::none();
  return py::int_(clock.error_bound_ns());
}

}  // namespace

py::dict snapshot_columns(const RecorderSnapshot& snapshot, uint64_t origin_ticks,
                          const py::array_t<uint64_t>& marks) {
  const int64_t origin_ns = snapshot.clock.to_ns(origin_ticks);
  NamedValues result;
  result["spans"] = span_columns(snapshot, origin_ns);
  result["steps"] = step_columns(snapshot, origin_ns);
  result["row_valid"] = row_valid_columns(snapshot);
  result["rows"] = row_columns(snapshot);
  result["row_commits"] = row_commit_columns(snapshot);
  result["token_logits"] = token_logit_columns(snapshot);
  result["activations"] = observation_columns(snapshot.store);
  result["first_step"] = snapshot.store.first_step;

  auto* mark_ns = result.column<int64_t>("marks_ns", marks.size());
  for (py::ssize_t i = 0; i < marks.size(); ++i) {
    mark_ns[i] = snapshot.clock.to_ns(marks.at(i)) - origin_ns;
  }

  py::list tracks;
  for (const TrackInfo& track : snapshot.tracks) {
    tracks.append(py::make_tuple(track.track, track.tid, track.name, track.device));
  }
  result["tracks"] = tracks;
  py::list sites;
  for (const SiteName& site : site_names()) {
    sites.append(py::make_tuple(static_cast<int>(site.category), site.name));
  }
  result["sites"] = sites;

  NamedValues losses;
  losses["records_dropped"] = snapshot.losses.records_dropped;
  losses["recording_faults"] = snapshot.losses.recording_faults;
  losses["collector_faults"] = snapshot.losses.collector_faults;
  losses["spans_evicted"] = snapshot.losses.spans_evicted;
  losses["steps_evicted"] = snapshot.losses.steps_evicted;
  losses["observations_dropped"] = snapshot.losses.observations_dropped;
  losses["observations_evicted"] = snapshot.losses.observations_evicted;
  const DeviceLosses& on_devices = snapshot.losses.devices;
  losses["device_spans"] = py::dict(
      py::arg("no_event") = on_devices.no_event, py::arg("in_capture") = on_devices.in_capture,
      py::arg("stream_changed") = on_devices.stream_changed, py::arg("late") = on_devices.late,
      py::arg("failed") = on_devices.failed, py::arg("overwritten") = on_devices.overwritten);
  losses["device_spans_pending"] = on_devices.pending;
  losses["bare_replays"] = on_devices.bare_replays;
  losses["no_stamps"] = on_devices.no_stamps;
  const ObservationLosses& unseen = snapshot.losses.device_observations;
  losses["device_observations"] = device_observation_losses(unseen);
  losses["observation_failure"] = unseen.failure;
  losses["device_logits"] = device_observation_losses(snapshot.losses.device_logits);
  losses["logit_failure"] = snapshot.losses.device_logits.failure;
  losses["device_clock_error_ns"] = on_devices.clock_error_ns;
  losses["device_failure"] = on_devices.failure;
  losses["spool_frames_lost"] = snapshot.losses.spool_frames_lost;
  result["losses"] = losses;

  NamedValues clock;
  clock["ticks_per_second"] = snapshot.clock.ticks_per_second();
  clock["error_bound_ns"] = error_bound(snapshot.clock);
  clock["boot_origin_ns"] = origin_ns;
  clock["steps"] = snapshot.clock.steps();
  result["clock"] = clock;
  return result;
}

}  // namespace pertoken::bindings
