// Observations of tensors on GPUs over the fake driver, whose kernels run the statistics kernel's
// own arithmetic: each is right and handed over in the order in which it was made, or it is
// counted.
#include <atomic>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/tensor_stats.h"
#include "cuda/gpu_observer.h"
#include "observer_rig.h"
#include "tensor_values.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;

constexpr int64_t kLong = 12'000'000'000;

struct Gpu : ObserverRig {
  using ObserverRig::ObserverRig;

  bool observe(const TensorView& view, uint32_t step = 0, bool by_row = false, int device = 0) {
    return observer->observe({device, device == 0 ? stream : nullptr}, {step, 7, 1, 16.0}, view,
                             by_row, reason);
  }
};

void check_same(const ExpHistogram& actual, const TensorView& view) {
  const ExpHistogram expected = reference_histogram_of(view, kDefaultHistogramScale);
  CHECK(actual.positive() == expected.positive());
  CHECK(actual.negative() == expected.negative());
  CHECK_EQ(actual.count(), expected.count());
  CHECK_EQ(actual.zero_count(), expected.zero_count());
  CHECK_EQ(actual.nan_count(), expected.nan_count());
  if (expected.count() == 0) return;
  CHECK_EQ(actual.min(), expected.min());
  CHECK_EQ(actual.max(), expected.max());
}

TensorView matrix(const std::vector<std::byte>& values, int64_t rows) {
  return float32_matrix(values.data(), values.size() / sizeof(float), rows);
}

uint64_t all(const ObservationLosses& losses) {
  return losses.no_room + losses.in_capture + losses.late + losses.failed + losses.lost;
}

}  // namespace

TEST(an_observation_arrives_behind_the_gpu_with_its_labels) {
  Gpu gpu;
  const auto values = normal_float32(3000, 1);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  gpu.driver.spin(gpu.stream, 5'000'000);
  CHECK(gpu.observe(view, 41));
  CHECK(gpu.observer->is_pending());
  CHECK(gpu.collect().empty());
  const auto made = gpu.collect(10'000'000);
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].step, 41U);
  CHECK_EQ(made[0].site, 7U);
  CHECK_EQ(made[0].row, kAllRows);
  CHECK_EQ(made[0].weight, 16.0);
  CHECK(made[0].format == FloatFormat::kFloat32);
  check_same(made[0].values, view);
  CHECK(!gpu.observer->is_pending());
  CHECK_EQ(gpu.driver.calls("cuStreamSynchronize"), 1U);  // when the device was set up
}

TEST(rows_arrive_in_their_order_and_repeated_ones_as_often) {
  Gpu gpu;
  const auto values = normal_float32(12 * 500, 2);
  TensorView view = matrix(values, 12);
  CHECK(gpu.observe(view, 1, true));
  auto made = gpu.collect();
  CHECK_EQ(made.size(), 12U);
  for (int32_t row = 0; row < 12; ++row) {
    CHECK_EQ(made[static_cast<size_t>(row)].row, row);
    check_same(made[static_cast<size_t>(row)].values, slice_of(view, 0, row, row + 1));
  }
  view.strides_bytes[0] = 0;
  CHECK(gpu.observe(view));
  made = gpu.collect();
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].values.count(), 6000U);
}

TEST(padding_is_left_out) {
  Gpu gpu;
  const auto values = normal_float32(3 * 10 * 16, 3);
  TensorView view = matrix(values, 3);
  view.dims = 3;
  view.shape[1] = 10;
  view.shape[2] = 16;
  view.strides_bytes[1] = 64;
  view.strides_bytes[2] = 4;
  const std::vector<ValidRun> runs = {{0, 0, 4, 10}, {1, 1, 0, 2}, {1, 1, 5, 10}};
  const auto of_run = [&](size_t i) {
    return slice_of(slice_of(view, 0, runs[i].batch_row, runs[i].batch_row + 1), 1, runs[i].begin,
                    runs[i].end);
  };
  const GpuPlace place{0, gpu.stream};
  for (int64_t row = 0; row < 3; ++row) {
    CHECK(gpu.observer->observe_runs(place, {5, 7, 1, 1.0}, view, runs, row, gpu.reason));
  }
  CHECK(gpu.observer->observe_runs(place, {5, 7, 1, 1.0}, view, runs, kAllRows, gpu.reason));
  const auto made = gpu.collect();
  CHECK_EQ(made.size(), 4U);
  check_same(made[0].values, of_run(0));
  ExpHistogram second = reference_histogram_of(of_run(1), 3);
  second.merge(reference_histogram_of(of_run(2), 3));
  CHECK(made[1].values.positive() == second.positive());
  CHECK_EQ(made[1].row, 1);
  CHECK_EQ(made[2].values.count(), 0U);  // nothing but padding
  CHECK_EQ(made[3].values.count(), 13U * 16);
  CHECK_EQ(made[3].row, kAllRows);
}

TEST(an_observation_that_was_cut_off_adds_nothing_to_the_next) {
  Gpu gpu;
  const auto values = normal_float32(2 * 5, 5);
  const TensorView view = matrix(values, 2);
  const GpuPlace place{0, gpu.stream};
  const std::vector<ValidRun> none;
  const std::vector<ValidRun> runs{{0, 0, 0, 5}, {0, 1, 0, 5}};  // of one row
  // Rows of padding alone have no results, but are told to the collector: until one more fits.
  uint32_t told = 0;
  for (; gpu.observer->losses().no_room == 0; ++told) {
    CHECK(gpu.observer->observe_runs(place, {1, 7, 1, 1.0}, view, none, 0, gpu.reason));
  }
  CHECK_EQ(gpu.collect().size(), told - 1);
  for (uint32_t i = 0; i + 2 < told; ++i) {
    CHECK(gpu.observer->observe_runs(place, {2, 7, 1, 1.0}, view, none, 0, gpu.reason));
  }
  CHECK(gpu.observer->observe_runs(place, {3, 7, 1, 1.0}, view, runs, 0, gpu.reason));
  CHECK_EQ(gpu.observer->losses().no_room, 2U);
  CHECK_EQ(gpu.collect().size(), told - 2);
  CHECK(gpu.observer->observe_runs(place, {4, 7, 1, 1.0}, view, {runs.data(), 1}, 0, gpu.reason));
  const auto made = gpu.collect();
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].step, 4U);
  CHECK_EQ(made[0].values.count(), 5U);
  CHECK_EQ(gpu.observer->losses().no_room, 2U);
}

TEST(results_that_nobody_collects_take_no_more_than_their_room) {
  Gpu gpu;
  const auto values = normal_float32(40, 4);
  const TensorView view = matrix(values, 4);
  const uint64_t room = uint64_t{1} << StatsDevices::kRecordsLog2;
  for (uint64_t i = 0; i < room / 4 + 5; ++i) CHECK(gpu.observe(view, 0, true));
  CHECK_EQ(gpu.observer->losses().no_room, 20U);
  CHECK_EQ(gpu.observer->fullness(), 1.0);
  CHECK_EQ(gpu.collect(100'000'000).size(), room);
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.collect().size(), 1U);
  CHECK_EQ(all(gpu.observer->losses()), 20U);
}

TEST(what_the_gpu_does_not_come_to_is_counted_and_what_comes_too_late_harms_nothing) {
  Gpu gpu;
  const auto values = normal_float32(100, 5);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CUstream other = nullptr;
  CHECK_EQ(gpu.driver.api()->cuStreamCreate(&other, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
  CHECK(gpu.observe(view, 1));
  CHECK_EQ(gpu.collect().size(), 1U);
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.observe(view, 2));
  CHECK(gpu.observer->observe({0, other}, {3, 7, 1, 1.0}, view, false, gpu.reason));
  CHECK(gpu.collect().empty());  // in the order in which they were made
  auto made = gpu.collect(kLong);
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].step, 3U);
  CHECK_EQ(gpu.observer->losses().late, 1U);
  gpu.driver.release(gpu.stream);
  CHECK(gpu.observe(view, 4));
  made = gpu.collect();
  CHECK_EQ(made.size(), 1U);
  CHECK_EQ(made[0].step, 4U);
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.observe(view, 5));
  gpu.observer->collect(kNsPerTick, gpu.intake);
  gpu.observer->give_up();
  CHECK(gpu.collect().empty());
  CHECK(!gpu.observer->is_pending());
  CHECK_EQ(gpu.observer->losses().late, 2U);
}

TEST(a_capture_is_left_alone) {
  Gpu gpu;
  const DriverApi& api = *gpu.driver.api();
  const auto values = normal_float32(100, 6);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CHECK(gpu.observe(view));
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(gpu.observe(view));
  CHECK(gpu.observer->observe({0, nullptr}, {0, 7, 1, 1.0}, view, false, gpu.reason));
  CHECK_EQ(gpu.collect().size(), 1U);
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  CHECK(graph != nullptr);
  size_t nodes = 0;
  CHECK_EQ(api.cuGraphGetNodes(graph, nullptr, &nodes), CUDA_SUCCESS);
  CHECK_EQ(nodes, 0U);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
  CHECK_EQ(gpu.observer->losses().in_capture, 2U);
}

TEST(a_device_that_fails_is_left_alone_and_a_stream_that_is_none_harms_itself_alone) {
  Gpu gpu;
  const auto values = normal_float32(100, 7);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.collect().size(), 1U);
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_INVALID_HANDLE);
  CHECK(gpu.observe(view));
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.collect().size(), 1U);
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.observe(view));
  gpu.driver.break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(gpu.observe(view));
  const uint64_t calls = gpu.driver.calls("cuCtxGetCurrent");
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.driver.calls("cuCtxGetCurrent"), calls);
  CHECK(gpu.collect().empty());
  CHECK(!gpu.observer->is_pending());
  CHECK_EQ(gpu.observer->losses().failed, 4U);
  CHECK(!gpu.observer->losses().failure.empty());
  gpu.driver.break_device(CUDA_SUCCESS);
}

TEST(a_context_that_is_reset_is_counted) {
  Gpu gpu;
  const auto values = normal_float32(100, 8);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.collect().size(), 1U);
  CHECK(gpu.observe(view));
  gpu.driver.destroy_context(0);
  CHECK(gpu.observe(view));
  CHECK(gpu.collect(kLong).size() <= 1);
  CHECK(!gpu.observer->is_pending());
  CHECK(gpu.observer->losses().failed >= 1);
}

TEST(what_cannot_be_read_and_a_device_that_cannot_be_set_up_are_said) {
  Gpu gpu;
  const auto values = normal_float32(100, 9);
  CHECK(!gpu.observe(view_of(values, FloatFormat::kFloat64)));
  CHECK(gpu.reason.find("float64") != std::string::npos);
  CHECK(!gpu.observe(view_of(values, FloatFormat::kFloat32), 0, false, 3));
  CHECK(gpu.reason.find("no such GPU") != std::string::npos);
  CHECK(!gpu.observe(view_of(values, FloatFormat::kFloat32), 0, false, 99));
  CHECK(gpu.observe(view_of(values.data(), FloatFormat::kFloat32, 0)));
  CHECK(gpu.collect().empty());
  CHECK_EQ(all(gpu.observer->losses()), 0U);
}

TEST(what_a_recording_leaves_the_next_one_takes_but_not_while_results_may_come) {
  Gpu gpu;
  const auto values = normal_float32(100, 10);
  const TensorView view = view_of(values, FloatFormat::kFloat32);
  const auto again = [&] {
    gpu.observer = std::make_unique<GpuObserver>(gpu.devices, &FakeDriver::ticks);
    CHECK(gpu.observe(view));
  };
  CHECK(gpu.observe(view));
  CHECK_EQ(gpu.collect().size(), 1U);
  again();
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 1U);
  again();
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 2U);
  CHECK_EQ(gpu.collect().size(), 1U);
  GpuObserver beside(gpu.devices, &FakeDriver::ticks);
  CHECK(beside.prepare(0, gpu.reason));
  CHECK_EQ(gpu.driver.calls("cuModuleLoadData"), 3U);
}

// Streams that stall, devices, rows, padding, captures, faults and a collector that is late, in any
// order: each observation comes once, right and in its order, or is counted once.
TEST(every_observation_is_right_or_counted) {
  const auto values = normal_float32(64 * 96, 11);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    std::mt19937_64 random(seed);
    Gpu gpu(2);
    const DriverApi& api = *gpu.driver.api();
    std::vector<GpuPlace> places = {{0, gpu.stream}, {0, nullptr}, {1, nullptr}};
    for (int i = 0; i < 3; ++i) {
      CUstream stream = nullptr;
      gpu.driver.set_current(i % 2);
      CHECK_EQ(api.cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
      places.push_back({i % 2, stream});
    }
    gpu.driver.set_current(0);
    std::map<uint32_t, std::pair<TensorView, uint32_t>> asked;  // what to find, and how often
    std::vector<Observation> made;
    uint64_t expected = 0;
    bool captures = false;
    bool is_broken = false;
    for (uint32_t step = 0; step < 300; ++step) {
      const GpuPlace& place = places[random() % places.size()];
      const auto rows = static_cast<int64_t>(1 + random() % 6);
      const auto width = static_cast<int64_t>(1 + random() % 90);
      TensorView view = matrix(values, 64);
      view.data += 4 * (random() % 5);
      view.shape[0] = rows;
      view.shape[1] = width;
      const bool by_row = random() % 3 == 0;
      asked[step] = {view, by_row ? static_cast<uint32_t>(rows) : 1};
      if (random() % 5 == 0) {
        std::vector<ValidRun> runs;
        for (int64_t row = 0; row < rows; ++row) runs.push_back({row, row, 0, width});
        asked[step].second = 1;
        CHECK(
            gpu.observer->observe_runs(place, {step, 7, 1, 1.0}, view, runs, kAllRows, gpu.reason));
      } else {
        CHECK(gpu.observer->observe(place, {step, 7, 1, 1.0}, view, by_row, gpu.reason));
      }
      expected += asked[step].second;
      switch (random() % 24) {
        case 0:
          gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_INVALID_HANDLE);
          break;
        case 1:
          gpu.turn_hold();
          break;
        case 2:
          if (is_broken) break;
          if (captures) {
            CUgraph graph = nullptr;
            CHECK_EQ(api.cuStreamEndCapture(places[3].stream, &graph), CUDA_SUCCESS);
          } else {
            CHECK_EQ(api.cuStreamBeginCapture_v2(places[3].stream, CU_STREAM_CAPTURE_MODE_GLOBAL),
                     CUDA_SUCCESS);
          }
          captures = !captures;
          break;
        case 3:
          gpu.driver.advance(kLong);
          gpu.collect_into(made);
          break;
        case 4:
          gpu.observer->give_up();
          break;
        case 5:
          is_broken = is_broken || (seed % 4 == 0 && step > 250);
          if (is_broken) gpu.driver.break_device(CUDA_ERROR_ILLEGAL_ADDRESS);
          break;
        default:
          gpu.go_on(random, made);
      }
    }
    gpu.finish(made);
    CHECK_EQ(gpu.driver.captures_broken(), 0U);
    uint32_t last = 0;
    for (const Observation& one : made) {
      CHECK(one.step >= last);
      last = one.step;
      const TensorView& view = asked.at(one.step).first;
      check_same(one.values, one.row == kAllRows ? view : slice_of(view, 0, one.row, one.row + 1));
    }
    CHECK_EQ(made.size() + all(gpu.observer->losses()), expected);
    CHECK(made.size() > 50);
    gpu.driver.break_device(CUDA_SUCCESS);
  }
}

TEST(a_thread_that_observes_and_one_that_collects) {
  Gpu gpu;
  const auto values = normal_float32(64, 12);
  const TensorView view = matrix(values, 4);
  std::atomic<bool> is_done{false};
  std::vector<Observation> made;
  std::thread collector([&] {
    while (!is_done) {
      gpu.collect_into(made);
      std::this_thread::yield();
    }
  });
  for (uint32_t step = 0; step < 1000; ++step) {
    CHECK(gpu.observe(view, step, true));
    gpu.driver.advance(3000);
  }
  is_done = true;
  collector.join();
  for (Observation& one : gpu.collect(1'000'000'000)) made.push_back(std::move(one));
  CHECK_EQ(made.size() + all(gpu.observer->losses()), 4000U);
  CHECK(!gpu.observer->is_pending());
  for (const Observation& one : made) {
    check_same(one.values, slice_of(view, 0, one.row, one.row + 1));
  }
}
