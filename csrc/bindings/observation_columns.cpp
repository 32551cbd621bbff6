#include "bindings/observation_columns.h"

#include "bindings/named_values.h"
namespace pertoken::bindings {

namespace py = pybind11;

namespace {

py::dict own_columns(const StoreSnapshot& store) {
  const auto length = static_cast<py::ssize_t>(store.observations.size());
  NamedValues columns;
  const auto column = [&]<typename Number>(const char* name, Number, auto&& value) {
    auto* out = columns.column<Number>(name, length);
    for (const auto& observation : store.observations) {
      *out++ = static_cast<Number>(value(*observation));
    }
  };
  using Stored = StoredObservation;
  column("observation", int64_t{}, [](const Stored& of) { return of.id; });
  column("step", int64_t{}, [](const Stored& of) { return of.step; });
  column("row", int32_t{}, [](const Stored& of) { return of.row; });
  column("site", int32_t{}, [](const Stored& of) { return of.site; });
  column("format", int32_t{}, [](const Stored& of) { return static_cast<int>(of.format); });
  column("scale", int32_t{}, [](const Stored& of) { return of.scale; });
  column("count", int64_t{}, [](const Stored& of) { return of.count; });
  column("zeros", int64_t{}, [](const Stored& of) { return of.zeros; });
  column("nans", int64_t{}, [](const Stored& of) { return of.nans; });
  column("pos_infs", int64_t{}, [](const Stored& of) { return of.pos_infs; });
  column("neg_infs", int64_t{}, [](const Stored& of) { return of.neg_infs; });
  column("min", double{}, [](const Stored& of) { return of.min; });
  column("max", double{}, [](const Stored& of) { return of.max; });
  column("sum", double{}, [](const Stored& of) { return of.sum; });
  column("sum_sq", double{}, [](const Stored& of) { return of.sum_sq; });
  column("weight", double{}, [](const Stored& of) { return of.weight; });
  return columns;
}

py::dict bucket_columns(const StoreSnapshot& store) {
  size_t filled = 0;
  for (const auto& observation : store.observations) filled += observation->filled_buckets();
  const auto length = static_cast<py::ssize_t>(filled);
  NamedValues columns;
  auto* id = columns.column<int64_t>("observation", length);
  auto* sign = columns.column<int32_t>("sign", length);
  auto* index = columns.column<int32_t>("index", length);
  auto* count = columns.column<int64_t>("count", length);
  for (const auto& observation : store.observations) {
    for (const StoredObservation::Bucket& bucket : observation->buckets()) {
      *id++ = observation->id;
      *sign++ = bucket.sign;
      *index++ = bucket.index;
      *count++ = static_cast<int64_t>(bucket.count);
    }
  }
  return columns;
}

}  // namespace

py::dict device_observation_losses(const ObservationLosses& losses) {
  return py::dict(py::arg("no_room") = losses.no_room, py::arg("in_capture") = losses.in_capture,
                  py::arg("late") = losses.late, py::arg("failed") = losses.failed,
                  py::arg("lost") = losses.lost);
}

py::dict observation_columns(const StoreSnapshot& store) {
  NamedValues columns;
  columns["observations"] = own_columns(store);
  columns["buckets"] = bucket_columns(store);
  return columns;
}

}  // namespace pertoken::bindings
