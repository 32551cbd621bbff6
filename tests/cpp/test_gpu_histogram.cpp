// What Histogram.from_values does with a tensor on a GPU, over the fake driver: right values, a
// clear error for each thing that can be wrong, and the next tensor is counted as if nothing was.
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/tensor_stats.h"
#include "cuda/gpu_histogram.h"
#include "emulated_kernels.h"
#include "tensor_values.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;

const std::byte kImage[16] = {};

struct Gpu {
  FakeDriver driver;
  GpuHistograms histograms{*driver.api(), kImage};
  CUstream stream = nullptr;

  Gpu() {
    add_stats_kernels(driver);
    driver.set_call_cost(2000);
    CHECK_EQ(driver.api()->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  }
  ~Gpu() { CHECK_EQ(driver.misuses(), 0U); }

  template <typename Failure>
  std::string refusal(const TensorView& view, int scale = 3, int device = 0) {
    try {
      (void)histograms.histogram(device, stream, view, scale);
    } catch (const Failure& error) {
      return error.what();
    }
    return "nothing was refused";
  }
};

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST(a_tensor_is_counted_and_waited_for_on_any_thread) {
  Gpu gpu;
  const auto values = normal_float32(5000, 1);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  gpu.driver.spin(gpu.stream, 50'000);  // work that is under way
  const ExpHistogram expected = reference_histogram_of(view, 2);
  const ExpHistogram actual = gpu.histograms.histogram(0, gpu.stream, view, 2);
  CHECK(actual.positive() == expected.positive());
  CHECK(actual.negative() == expected.negative());
  CHECK_EQ(actual.min(), expected.min());
  // A thread that has no context, as one of a pool.
  uint64_t count = 0;
  std::thread([&] {
    gpu.driver.set_current(-1);
    count = gpu.histograms.histogram(0, gpu.stream, view, 3).count();
  }).join();
  CHECK_EQ(count, 5000U);
  CHECK_EQ(gpu.histograms.histogram(0, gpu.stream, view_of(nullptr, FloatFormat::kFloat16, 0), 3)
               .count(),
           0U);
}

TEST(values_that_are_repeated_are_counted_as_often) {
  Gpu gpu;
  const auto values = normal_float32(10, 2);
  TensorView view = view_of(values, FloatFormat::kFloat32);
  view.dims = 2;
  view.shape[1] = view.shape[0];
  view.strides_bytes[1] = view.strides_bytes[0];
  view.shape[0] = 7;
  view.strides_bytes[0] = 0;
  const ExpHistogram actual = gpu.histograms.histogram(0, gpu.stream, view, 3);
  CHECK_EQ(actual.count(), 70U);
  CHECK(actual.positive() == reference_histogram_of(view, 3).positive());
}

TEST(what_is_wrong_is_said_and_does_no_harm) {
  Gpu gpu;
  const auto values = normal_float32(100, 3);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CHECK(contains(gpu.refusal<GpuFailure>(view, 3, 5), "no such GPU"));
  gpu.driver.fail("cuModuleLoadData", CUDA_ERROR_INVALID_IMAGE);
  CHECK(contains(gpu.refusal<GpuFailure>(view), "cannot be set up"));
  CHECK(contains(gpu.refusal<std::invalid_argument>(view, 4), "up to 3"));
  CHECK(contains(gpu.refusal<UnreadableTensor>(view_of(values, FloatFormat::kFloat64)), "float64"));
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(contains(gpu.refusal<GpuFailure>(view), "not launched"));
  CHECK_EQ(gpu.histograms.histogram(0, gpu.stream, view, 3).count(), 100U);
  gpu.driver.fail("cuStreamQuery", CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(contains(gpu.refusal<GpuFailure>(view), "failed while it counted"));
  // The result of the wait that failed comes later, and is not taken for that of the next.
  CHECK_EQ(
      gpu.histograms.histogram(0, gpu.stream, view_of(values.data(), view.format, 7), 3).count(),
      7U);
}

TEST(a_stream_that_is_captured_is_left_alone) {
  Gpu gpu;
  const DriverApi& api = *gpu.driver.api();
  const auto values = normal_float32(100, 4);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CHECK_EQ(gpu.histograms.histogram(0, gpu.stream, view, 3).count(), 100U);
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(contains(gpu.refusal<GpuFailure>(view), "captured into a CUDA graph"));
  CUstream other = nullptr;
  CHECK_EQ(api.cuStreamCreate(&other, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  CHECK_EQ(gpu.histograms.histogram(0, other, view, 3).count(), 100U);
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
}

TEST(a_kernel_that_leaves_no_result_is_an_error_and_not_a_wait_without_end) {
  Gpu gpu;
  const auto values = normal_float32(100, 5);
  gpu.driver.add_kernel(stats_kernel_of(FloatFormat::kFloat32), {{sizeof(StatsArgs)}, 3000, {}});
  CHECK(
      contains(gpu.refusal<GpuFailure>(view_of(values, FloatFormat::kFloat32)), "did not arrive"));
}
