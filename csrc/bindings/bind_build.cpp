// How this module was built: `_native.build_info()`, read by `pertoken doctor` and by the metadata
// of every profile. Called off the hot path, under the GIL.
#include <pybind11/pybind11.h>

#include <string>

#include "bindings/build_info.h"
#include "bindings/module.h"
#include "bindings/named_values.h"
#include "cuda/kernel_image.h"

namespace py = pybind11;

namespace pertoken::bindings {
namespace {

// For which GPUs there are kernels, and how large they are.
std::string kernels() {
  const size_t bytes = cuda::kernel_image().size();
  if (bytes == 0) return "none";
  return std::string(kGpuTargets) + "; " + std::to_string(bytes / 1000) + " KB";
}

py::dict build_info() {
  NamedValues info;
  info["pertoken"] = kVersion;
  info["compiler"] = kCompiler;
  info["compiler_version"] = kCompilerVersion;
  info["cxx_standard"] = py::int_(__cplusplus);
  info["cmake"] = kCmakeVersion;
  info["build_type"] = kBuildType;
  info["system"] = kTargetSystem;
  info["arch"] = kTargetArch;
  info["python"] = PY_VERSION;
  info["pybind11"] = kPybind11Version;
  info["sanitizers"] = kSanitizers;
  info["cuda_setting"] = kCudaSetting;
  info["cuda_compiler"] = kNvccVersion;
  info["cuda_reason"] = kCudaReason;
  info["cuda_kernels"] = kernels();
  return info;
}

}  // namespace

void bind_build(py::module_& m) {
  m.def("build_info", &build_info,
        "How this module was built: a new dict of strings; `cxx_standard` is an int "
        "(the value of __cplusplus). `cuda_reason` is empty when the CUDA compiler worked; "
        "`cuda_kernels` is \"none\" when it did not.");
}

}  // namespace pertoken::bindings
