// The table of driver functions: what is said where there is no driver or another library, and
// what the fake one does that the tests of timers and graphs rest on.
#include <string>
#include <thread>

#include "check.h"
#include "cuda/driver_api.h"
#include "fake_driver.h"

namespace pertoken {
namespace {

using namespace cuda;
using testing::FakeDriver;

TEST(a_library_that_is_not_there_gives_a_reason) {
  DriverApi api;
  std::string reason;
  CHECK(!load_driver("libno_such_driver.so.1", api, reason));
  CHECK(reason.find("libno_such_driver.so.1") != std::string::npos);
  CHECK(api.cuEventRecord == nullptr);
}

TEST(a_library_without_the_functions_names_the_first_that_is_missing) {
  DriverApi api;
  std::string reason;
  CHECK(!load_driver("libc.so.6", api, reason));
  CHECK(reason.find("cuInit") != std::string::npos);
  CHECK(reason.find("CUDA 12.0") != std::string::npos);
  CHECK(api.cuInit == nullptr);
}

TEST(the_driver_is_there_or_says_why_not) {
  const DriverStatus status = driver();
  CHECK((status.api != nullptr) == status.reason.empty());
}

TEST(another_table_takes_the_drivers_place_and_gives_it_back) {
  const DriverApi* before = driver().api;
  FakeDriver fake;
  replace_driver(fake.api());
  CHECK(driver().api == fake.api());
  replace_driver(nullptr);
  CHECK(driver().api == before);
}

TEST(errors_are_named) {
  FakeDriver fake;
  CHECK_EQ(error_text(*fake.api(), CUDA_ERROR_ILLEGAL_ADDRESS),
           std::string("CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
  CHECK_EQ(error_text(*fake.api(), 12345), std::string("CUDA error (12345)"));
}

TEST(the_fake_fills_every_function) {
  FakeDriver fake;
#define FILLED(symbol, arguments) CHECK(fake.api()->symbol != nullptr);
  PERTOKEN_DRIVER_FUNCTIONS(FILLED)
#undef FILLED
}

TEST(events_of_the_fake_measure_the_work_between_them) {
  FakeDriver fake;
  const DriverApi& api = *fake.api();
  CUstream stream = nullptr;
  CUevent start = nullptr;
  CUevent end = nullptr;
  api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  api.cuEventCreate(&start, CU_EVENT_DEFAULT);
  api.cuEventCreate(&end, CU_EVENT_DEFAULT);
  fake.spin(stream, 50'000);
  CHECK_EQ(api.cuEventRecord(start, stream), CUDA_SUCCESS);
  fake.spin(stream, 123'000);
  CHECK_EQ(api.cuEventRecord(end, stream), CUDA_SUCCESS);
  CHECK_EQ(api.cuEventQuery(end), CUDA_ERROR_NOT_READY);
  fake.advance(1'000'000);
  CHECK_EQ(api.cuEventQuery(end), CUDA_SUCCESS);
  float milliseconds = 0;
  CHECK_EQ(api.cuEventElapsedTime(&milliseconds, start, end), CUDA_SUCCESS);
  CHECK_EQ(milliseconds, 0.123f);
}

TEST(a_query_breaks_anothers_global_capture_unless_in_relaxed_mode) {
  FakeDriver fake;
  const DriverApi& api = *fake.api();
  CUstream stream = nullptr;
  CUevent event = nullptr;
  api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  api.cuEventCreate(&event, CU_EVENT_DEFAULT);
  api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
  std::thread([&] {
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    api.cuThreadExchangeStreamCaptureMode(&mode);
    api.cuEventQuery(event);
  }).join();
  CHECK_EQ(fake.captures_broken(), uint64_t{0});
  std::thread([&] { api.cuEventQuery(event); }).join();
  CHECK_EQ(fake.captures_broken(), uint64_t{1});
}

TEST(a_graph_runs_its_enabled_kernels_with_the_parameters_captured) {
  FakeDriver fake;
  const DriverApi& api = *fake.api();
  fake.add_kernel("add", {.parameter_bytes = {sizeof(CUdeviceptr), sizeof(uint32_t)},
                          .duration_ns = 2000,
                          .body = [](const testing::FakeLaunch& launch) {
                            *reinterpret_cast<uint32_t*>(static_cast<uintptr_t>(
                                launch.parameter<CUdeviceptr>(0))) += launch.parameter<uint32_t>(1);
                          }});
  CUmodule module = nullptr;
  CUfunction add = nullptr;
  CUstream stream = nullptr;
  CUdeviceptr sum = 0;
  CHECK_EQ(api.cuModuleLoadData(&module, "image"), CUDA_SUCCESS);
  CHECK_EQ(api.cuModuleGetFunction(&add, module, "add"), CUDA_SUCCESS);
  CHECK_EQ(api.cuModuleGetFunction(&add, module, "none"), CUDA_ERROR_NOT_FOUND);
  api.cuMemAlloc_v2(&sum, sizeof(uint32_t));
  api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  api.cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL);
  api.cuMemsetD8Async(sum, 0, sizeof(uint32_t), stream);
  for (uint32_t amount : {3u, 4u}) {
    void* parameters[] = {&sum, &amount};
    CHECK_EQ(api.cuLaunchKernel(add, 1, 1, 1, 32, 1, 1, 0, stream, parameters, nullptr),
             CUDA_SUCCESS);
    amount = 1000;
  }
  CUgraph graph = nullptr;
  CUgraphExec exec = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
  size_t count = 0;
  api.cuGraphGetNodes(graph, nullptr, &count);
  CHECK_EQ(count, size_t{3});
  CUgraphNode nodes[3];
  api.cuGraphGetNodes(graph, nodes, &count);
  api.cuGraphInstantiateWithFlags(&exec, graph, 0);
  const auto value = [&] { return *reinterpret_cast<uint32_t*>(static_cast<uintptr_t>(sum)); };
  api.cuGraphLaunch(exec, stream);
  api.cuStreamSynchronize(stream);
  CHECK_EQ(value(), 7u);
  CHECK_EQ(api.cuGraphNodeSetEnabled(exec, nodes[1], 0), CUDA_SUCCESS);
  api.cuGraphLaunch(exec, stream);
  api.cuStreamSynchronize(stream);
  CHECK_EQ(value(), 4u);
  CUDA_KERNEL_NODE_PARAMS parameters{};
  CHECK_EQ(api.cuGraphKernelNodeGetParams_v2(nodes[2], &parameters), CUDA_SUCCESS);
  CHECK_EQ(*static_cast<uint32_t*>(parameters.kernelParams[1]), 4u);
  api.cuMemFree_v2(sum);
  CHECK_EQ(fake.live_allocations(), size_t{0});
  CHECK_EQ(fake.misuses(), uint64_t{0});
}

TEST(planted_faults_come_when_they_should) {
  FakeDriver fake;
  const DriverApi& api = *fake.api();
  CUevent event = nullptr;
  fake.fail("cuEventCreate", CUDA_ERROR_OUT_OF_MEMORY, 2, 1);
  CHECK_EQ(api.cuEventCreate(&event, CU_EVENT_DEFAULT), CUDA_SUCCESS);
  CUevent other = nullptr;
  CHECK_EQ(api.cuEventCreate(&other, CU_EVENT_DEFAULT), CUDA_ERROR_OUT_OF_MEMORY);
  CHECK_EQ(api.cuEventCreate(&other, CU_EVENT_DEFAULT), CUDA_ERROR_OUT_OF_MEMORY);
  CHECK_EQ(api.cuEventCreate(&other, CU_EVENT_DEFAULT), CUDA_SUCCESS);
  fake.destroy_context(0);
  CHECK_EQ(api.cuEventQuery(event), CUDA_ERROR_CONTEXT_IS_DESTROYED);
  fake.break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK_EQ(api.cuEventQuery(event), CUDA_ERROR_ILLEGAL_ADDRESS);
}

}  // namespace
}  // namespace pertoken
