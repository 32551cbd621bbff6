// Tensors in a GPU's memory, for Python. Called on any thread; waits for the GPU without the GIL.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "bindings/module.h"
#include "bindings/stats_devices.h"
#include "bindings/tensor_arguments.h"
#include "bindings/without_gil.h"
#include "cuda/gpu_histogram.h"
#include "cuda/kernel_image.h"

namespace py = pybind11;

namespace pertoken::bindings {
namespace {

// Under the GIL.
cuda::StatsDevices* known_devices = nullptr;
cuda::LogitDevices* known_logit_devices = nullptr;

template <typename Devices>
Devices* devices_of_driver(Devices*& known, std::string& reason) {
  if (known == nullptr) {
    cuda::DriverStatus driver = cuda::driver();
    reason = std::move(driver.reason);
    if (driver.api == nullptr) return nullptr;
    known = new Devices(*driver.api, cuda::kernel_image());
  }
  return known;
}

cuda::GpuHistograms& gpu_histograms() {
  const cuda::DriverStatus driver = cuda::driver();
  if (driver.api == nullptr) throw cuda::GpuFailure(driver.reason);
  // Never destroyed: kernels may run until the process ends.
  static auto& histograms = *new cuda::GpuHistograms(*driver.api, cuda::kernel_image());
  return histograms;
}

ExpHistogram of_gpu_tensor(int device, uintptr_t stream, uintptr_t address, int format,
                           const py::tuple& shape, const py::tuple& strides_bytes, int scale) {
  const TensorView view = view_of(address, format, shape, strides_bytes);
  ExpHistogram histogram(scale);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  const auto on = reinterpret_cast<cuda::CUstream>(stream);
  without_gil([&] { histogram = gpu_histograms().histogram(device, on, view, scale); });
  return histogram;
}

// What Python raises for what this file throws.
void translate(std::exception_ptr failure) {
  try {
    std::rethrow_exception(std::move(failure));
  } catch (const cuda::GpuFailure& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (const cuda::UnreadableTensor& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  }
}

}  // namespace

cuda::StatsDevices* stats_devices(std::string& reason) {
  return devices_of_driver(known_devices, reason);
}

cuda::LogitDevices* logit_devices(std::string& reason) {
  return devices_of_driver(known_logit_devices, reason);
}

void forget_stats_devices() {
  known_devices = nullptr;
  known_logit_devices = nullptr;
}

void bind_gpu(py::module_& m) {
  py::register_local_exception_translator(&translate);
  m.def("histogram_of_gpu_tensor", &of_gpu_tensor, py::arg("device"), py::arg("stream"),
        py::arg("address"), py::arg("format"), py::arg("shape"), py::arg("strides_bytes"),
        py::arg("scale"),
        "The histogram of memory on a GPU that the caller vouches for, counted on that stream.");
}

}  // namespace pertoken::bindings
