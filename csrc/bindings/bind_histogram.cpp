// The exponential histogram as Python sees it, and the way from a tensor's memory to one. Called on
// any thread; a large tensor is read without the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/host_tensor.h"
#include "bindings/module.h"
#include "bindings/tensor_arguments.h"
#include "bindings/without_gil.h"
#include "core/exp_histogram.h"
#include "core/logit_stats.h"
#include "core/tensor_stats.h"

namespace py = pybind11;

namespace pertoken::bindings {
namespace {

using Counts = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;

py::tuple tuple_of(const Buckets& buckets) {
  return py::make_tuple(buckets.offset, Counts(static_cast<py::ssize_t>(buckets.counts.size()),
                                               buckets.counts.data()));
}

Buckets buckets_from(int32_t offset, const Counts& counts) {
  if (counts.ndim() != 1) throw py::value_error("counts must have one dimension");
  return {offset, std::vector<uint64_t>(counts.data(), counts.data() + counts.size())};
}

ExpHistogram from_parts(int scale, int32_t positive_offset, const Counts& positive,
                        int32_t negative_offset, const Counts& negative, uint64_t zeros,
                        uint64_t nans, uint64_t pos_infs, uint64_t neg_infs, double sum,
                        double sum_sq, double min, double max) {
  return ExpHistogram(HistogramParts{
      .scale = scale,
      .positive = buckets_from(positive_offset, positive),
      .negative = buckets_from(negative_offset, negative),
      .zeros = zeros,
      .nans = nans,
      .pos_infs = pos_infs,
      .neg_infs = neg_infs,
      .sum = sum,
      .sum_sq = sum_sq,
      .min = min,
      .max = max,
  });
}

struct NamedSet {
  const char* name;
  InstructionSet set;
};

// The last one that is supported is the best.
constexpr NamedSet kSets[] = {
    {"portable", InstructionSet::kPortable},
    {"avx2", InstructionSet::kAvx2},
    {"avx512", InstructionSet::kAvx512},
};

py::tuple instruction_sets() {
  py::list names;
  for (const NamedSet& named : kSets) {
    if (is_supported(named.set)) names.append(named.name);
  }
  return names;
}

InstructionSet instruction_set_of(const std::string& name) {
  if (name.empty()) return best_instruction_set();
  for (const NamedSet& named : kSets) {
    if (name == named.name && is_supported(named.set)) return named.set;
  }
  throw py::value_error("this processor has no instructions called " + name);
}

ExpHistogram of_tensor(uintptr_t address, int format, const py::tuple& shape,
                       const py::tuple& strides_bytes, int scale, const std::string& instructions) {
  const TensorView view = view_of(address, format, shape, strides_bytes);
  const InstructionSet set = instruction_set_of(instructions);
  if (TensorBlocks(view).values_left() < kValuesWithoutGil) return histogram_of(view, scale, set);
  ExpHistogram histogram(scale);
  without_gil([&] { histogram = histogram_of(view, scale, set); });
  return histogram;
}

ExpHistogram merged(const ExpHistogram& one, const ExpHistogram& other) {
  ExpHistogram sum = one;
  sum.merge(other);
  return sum;
}

ExpHistogram downscaled(const ExpHistogram& histogram, int scale) {
  ExpHistogram wider = histogram;
  wider.downscale(scale);
  return wider;
}

}  // namespace

void bind_histogram(py::module_& m) {
  py::class_<ExpHistogram>(m, "ExpHistogram",
                           "The native histogram; no method changes one. See pertoken.Histogram.")
      .def(py::init<int>(), py::arg("scale"))
      .def_static("from_parts", &from_parts, py::kw_only(), py::arg("scale"),
                  py::arg("positive_offset"), py::arg("positive"), py::arg("negative_offset"),
                  py::arg("negative"), py::arg("zeros"), py::arg("nans"), py::arg("pos_infs"),
                  py::arg("neg_infs"), py::arg("sum"), py::arg("sum_sq"), py::arg("min"),
                  py::arg("max"))
      .def_static("of_tensor", &of_tensor, py::arg("address"), py::arg("format"), py::arg("shape"),
                  py::arg("strides_bytes"), py::arg("scale"), py::arg("instructions") = "",
                  "The histogram of memory that the caller vouches for.")
      .def("merged", &merged, py::arg("other"))
      .def("downscaled", &downscaled, py::arg("scale"))
      .def("quantile", &ExpHistogram::quantile, py::arg("q"))
      .def("equals", [](const ExpHistogram& a, const ExpHistogram& b) { return a == b; })
      .def_property_readonly("scale", &ExpHistogram::scale)
      .def_property_readonly("count", &ExpHistogram::count)
      .def_property_readonly("zeros", &ExpHistogram::zero_count)
      .def_property_readonly("nans", &ExpHistogram::nan_count)
      .def_property_readonly("pos_infs", &ExpHistogram::pos_inf_count)
      .def_property_readonly("neg_infs", &ExpHistogram::neg_inf_count)
      .def_property_readonly("sum", &ExpHistogram::sum)
      .def_property_readonly("sum_sq", &ExpHistogram::sum_sq)
      .def_property_readonly("min", &ExpHistogram::min)
      .def_property_readonly("max", &ExpHistogram::max)
      .def_property_readonly("positive",
                             [](const ExpHistogram& h) { return tuple_of(h.positive()); })
      .def_property_readonly("negative",
                             [](const ExpHistogram& h) { return tuple_of(h.negative()); });
  m.def("instruction_sets", &instruction_sets,
        "Names of the sets of instructions that tensors can be counted with here, the best last.");
  m.def(
      "logit_stats",
      [](uintptr_t address, int format, const py::tuple& shape, const py::tuple& strides_bytes,
         const std::string& instructions) {
        const TensorView view = view_of(address, format, shape, strides_bytes);
        const bool is_reference = instructions == "reference";
        const InstructionSet set = instruction_set_of(is_reference ? "" : instructions);
        LogitStats stats;
        without_gil(
            [&] { stats = is_reference ? reference_logit_stats(view) : logit_stats(view, set); });
        return py::make_tuple(stats.top1_prob, stats.margin, stats.entropy, stats.log_sum);
      },
      py::arg("address"), py::arg("format"), py::arg("shape"), py::arg("strides_bytes"),
      py::arg("instructions") = "",
      "Top-1 probability, margin, entropy and the log of the sum of exponentials of memory that "
      "the caller vouches for.");
  m.def("bucket_upper_bound", &bucket_upper_bound, py::arg("index"), py::arg("scale"));

  py::dict formats;
  formats["float64"] = static_cast<int>(FloatFormat::kFloat64);
  formats["float32"] = static_cast<int>(FloatFormat::kFloat32);
  formats["float16"] = static_cast<int>(FloatFormat::kFloat16);
  formats["bfloat16"] = static_cast<int>(FloatFormat::kBFloat16);
  formats["float8_e4m3fn"] = static_cast<int>(FloatFormat::kFloat8E4M3FN);
  formats["float8_e4m3fnuz"] = static_cast<int>(FloatFormat::kFloat8E4M3FNUZ);
  formats["float8_e5m2"] = static_cast<int>(FloatFormat::kFloat8E5M2);
  formats["float8_e5m2fnuz"] = static_cast<int>(FloatFormat::kFloat8E5M2FNUZ);
  m.attr("FLOAT_FORMATS") = formats;
  m.attr("MIN_HISTOGRAM_SCALE") = kMinHistogramScale;
  m.attr("MAX_HISTOGRAM_SCALE") = kMaxHistogramScale;
}

}  // namespace pertoken::bindings
