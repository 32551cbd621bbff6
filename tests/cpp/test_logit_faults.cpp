// Logits on GPUs where something is in the way: a stream that stalls or is captured, a lack of
// room, a GPU that fails. Nobody waits, nothing breaks, and each token that is not told of is
// counted.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "logit_rig.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;

using Gpu = LogitRig;

constexpr int64_t kLong = 12'000'000'000;

}  // namespace

TEST(results_come_behind_the_gpu_and_nobody_waits) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  gpu.driver.spin(gpu.stream, 50'000'000);
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.logits->is_pending());
  CHECK(gpu.collect().empty());
  CHECK(gpu.logits->is_pending());
  CHECK_EQ(gpu.collect(100'000'000).size(), 1U);
  CHECK(!gpu.logits->is_pending());
  CHECK(gpu.logits->fullness() > 0);
  CHECK_EQ(gpu.logits->fullness(), 0);
}

TEST(what_cannot_be_read_says_why) {
  Gpu gpu;
  const auto bytes = random_bytes(1000, 1);
  CHECK(!gpu.read({view_of(bytes.data(), FloatFormat::kFloat64, 50)}));
  CHECK(gpu.reason.find("float32") != std::string::npos);
  TensorView row = view_of(bytes.data(), FloatFormat::kFloat32, 50);
  row.data += 1;
  CHECK(!gpu.read({row}));
  CHECK(gpu.reason.find("aligned") != std::string::npos);
  CHECK(!gpu.logits->prepare(5, gpu.reason));
  CHECK(gpu.reason.find("no such GPU") != std::string::npos);
  CHECK_EQ(all(gpu.logits->losses()), 0U);
}

TEST(another_stream_than_that_of_the_logits_is_not_used) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  CHECK(gpu.read({row}));
  const CUstream first = std::exchange(gpu.stream, gpu.new_stream());
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.reason.find("stream") != std::string::npos);
  // Memory that one stream used is not another's.
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  gpu.driver.hold(first);
  CHECK_EQ(gpu.collect().size(), 1U);
  gpu.driver.release(first);
}

TEST(a_capture_is_left_alone_and_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  CHECK(gpu.read({row}));
  const DriverApi& api = *gpu.driver.api();
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(!gpu.read({row, row}));
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  size_t nodes = 0;
  CHECK_EQ(api.cuGraphGetNodes(graph, nullptr, &nodes), CUDA_SUCCESS);
  CHECK_EQ(nodes, 0U);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
  CHECK_EQ(gpu.logits->losses().in_capture, 3U);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
}

TEST(memory_that_must_be_made_while_others_capture_breaks_nothing) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 100'000, 6);
  CHECK(gpu.logits->prepare(0, gpu.reason));
  const CUstream other = gpu.new_stream();
  const DriverApi& api = *gpu.driver.api();
  CHECK_EQ(api.cuStreamBeginCapture_v2(other, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(gpu.read({row_at(bytes, FloatFormat::kFloat32, 0, 100'000)}));
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(other, &graph), CUDA_SUCCESS);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
}

TEST(without_room_for_copies_the_rest_is_told) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40'000, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40'000);
  CHECK(gpu.logits->prepare(0, gpu.reason));
  KeptLogitRows other;
  // Where the GPU has no memory left; and then not even the rest.
  gpu.driver.fail("cuMemAlloc_v2", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const std::vector<uint64_t> one = {reinterpret_cast<uintptr_t>(row.data)};
  const GpuLogitRows rows{one, 4, 40'000, FloatFormat::kFloat32, 1, kNone};
  CHECK(gpu.logits->read({0, gpu.stream}, rows, true, other, gpu.reason));
  CHECK(!other.has_copies());
  CHECK(gpu.logits->tell({0, gpu.stream}, other, 1, 1.0F, std::vector<ToldToken>{{0, 0, 0, 9}},
                         kNone, gpu.reason));
  const auto told = gpu.collect();
  CHECK_EQ(told.size(), 1U);
  if (!told.empty()) check_told(told[0], row, -1);
  KeptLogitRows third;
  gpu.driver.fail("cuMemAlloc_v2", CUDA_ERROR_OUT_OF_MEMORY, 2);
  CHECK(!gpu.logits->read({0, gpu.stream}, rows, true, third, gpu.reason));
  CHECK_EQ(gpu.logits->losses().no_room, 1U);
}

TEST(copies_take_no_more_than_they_may) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  TensorView wide = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  wide.shape[0] = 520'000;
  gpu.driver.hold(gpu.stream);  // for good: nothing of it is ever read
  CHECK(gpu.read(std::vector<TensorView>(120, wide)));
  CHECK(gpu.kept.has_copies());
  CHECK(gpu.read(std::vector<TensorView>(130, wide)));
  CHECK(!gpu.kept.has_copies());
  CHECK(gpu.read({wide}));
  CHECK(gpu.kept.has_copies());
}

TEST(more_results_than_there_is_room_for_are_dropped_and_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  const std::vector<ToldToken> tokens(100, ToldToken{0, 0, 0, 9});
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.read({row}));
  size_t launched = 0;
  for (int i = 0; i < 50; ++i) {
    gpu.tell(tokens);
    launched += tokens.size();
  }
  const uint64_t no_room = gpu.logits->losses().no_room;
  CHECK(no_room > 0);
  CHECK(gpu.collect().empty());
  gpu.driver.release(gpu.stream);
  CHECK_EQ(gpu.collect(100'000'000).size() + no_room, launched);
  CHECK_EQ(all(gpu.logits->losses()), no_room);
  CHECK(gpu.tell(tokens));
  CHECK_EQ(gpu.collect().size(), tokens.size());
}

TEST(what_does_not_come_in_time_or_from_a_gpu_that_failed_is_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  CHECK(gpu.read({row}));
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.tell({{0, 0, 0, 9}, {0, 0, 0, 9}}));
  CHECK(gpu.collect(kLong).empty());
  CHECK_EQ(gpu.logits->losses().late, 2U);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.collect().empty());
  gpu.logits->give_up();
  CHECK(gpu.collect().empty());
  CHECK_EQ(gpu.logits->losses().late, 3U);
  CHECK(!gpu.logits->is_pending());
  gpu.driver.release(gpu.stream);
  CHECK(gpu.collect(kLong).empty());  // too late
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.collect().empty());
  CHECK_EQ(gpu.logits->losses().failed, 1U);
  CHECK(!gpu.read({row}));
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.logits->losses().failed, 3U);
  CHECK(gpu.logits->losses().failure.find("ILLEGAL_ADDRESS") != std::string::npos);
}

TEST(the_next_recording_goes_on_with_what_the_last_one_made) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
  const size_t made = gpu.driver.live_allocations();
  gpu.start();
  KeptLogitRows later;  // while the first still holds its memory
  const std::vector<uint64_t> one = {reinterpret_cast<uintptr_t>(row.data)};
  const GpuLogitRows rows{one, 4, 40, FloatFormat::kFloat32, 1, kNone};
  CHECK(gpu.logits->read({0, gpu.stream}, rows, true, later, gpu.reason));
  CHECK_EQ(gpu.driver.live_allocations(), made + 1);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
  // One that may still be written to is not handed out.
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  gpu.start();
  CHECK(gpu.logits->prepare(0, gpu.reason));
  CHECK(gpu.driver.live_allocations() > made + 1);
  gpu.driver.release(gpu.stream);
  CHECK(gpu.collect().empty());
}
