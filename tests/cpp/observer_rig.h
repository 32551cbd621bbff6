// A GpuObserver over the fake driver, whose kernels run the statistics kernel's own arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/gpu_observer.h"
#include "emulated_kernels.h"
#include "tensor_values.h"

namespace pertoken::testing {

inline constexpr double kNsPerTick = 1 / FakeDriver::kTicksPerNs;
inline constexpr std::byte kImage[16] = {};

struct ObserverRig {
  FakeDriver driver;
  cuda::StatsDevices devices;
  std::unique_ptr<cuda::GpuObserver> observer;
  ObservationIntake intake;
  cuda::CUstream stream = nullptr;
  std::string reason;

  explicit ObserverRig(int count = 1, uint32_t records_log2 = cuda::StatsDevices::kRecordsLog2)
      : driver(count), devices(*driver.api(), kImage, records_log2) {
    add_stats_kernels(driver);
    driver.set_current(0);
    CHECK_EQ(driver.api()->cuStreamCreate(&stream, cuda::CU_STREAM_NON_BLOCKING),
             cuda::CUDA_SUCCESS);
    observer = std::make_unique<cuda::GpuObserver>(devices, &FakeDriver::ticks);
  }
  ~ObserverRig() { CHECK_EQ(driver.misuses(), 0U); }

  void collect_into(std::vector<Observation>& made) {
    observer->collect(kNsPerTick, intake);
    for (Observation& one : intake.take(0).observations) made.push_back(std::move(one));
  }
  std::vector<Observation> collect(int64_t after_ns = 1'000'000) {
    driver.advance(after_ns);
    std::vector<Observation> made;
    collect_into(made);
    return made;
  }
  // The stream stalls, or goes on.
  void turn_hold() {
    is_held_ ? driver.release(stream) : driver.hold(stream);
    is_held_ = !is_held_;
  }
  // Lets a little time pass, and collects now and then.
  void go_on(std::mt19937_64& random, std::vector<Observation>& made) {
    driver.advance(static_cast<int64_t>(random() % 20'000));
    if (random() % 4 == 0) collect_into(made);
  }
  // Nothing is on its way any more.
  void finish(std::vector<Observation>& made) {
    if (is_held_) turn_hold();
    driver.advance(1'000'000'000);
    collect_into(made);
    observer->give_up();
    collect_into(made);
    CHECK(!observer->is_pending());
  }

 private:
  bool is_held_ = false;
};

// `bytes` of float32 values, as so many rows.
inline TensorView float32_matrix(const std::byte* bytes, size_t values, int64_t rows) {
  TensorView view = view_of(bytes, FloatFormat::kFloat32, values);
  view.dims = 2;
  view.shape[1] = view.shape[0] / rows;
  view.shape[0] = rows;
  view.strides_bytes[1] = 4;
  view.strides_bytes[0] = 4 * view.shape[1];
  return view;
}

}  // namespace pertoken::testing
