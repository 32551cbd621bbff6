// The devices that a recording uses, by number: each is opened once, by the model's thread, when it
// is first needed, and found by the collector from then on.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <string>

#include "core/device_source.h"
#include "cuda/opened_context.h"
#include "cuda/results_under_way.h"

namespace pertoken::cuda {

// Of ResultsUnderWay, with what is needed besides.
template <typename Device>
class DevicesInUse {
 public:
  DevicesInUse() = default;
  ~DevicesInUse() {
    for (auto& held : devices_) delete held.load(std::memory_order_relaxed);
  }
  DevicesInUse(const DevicesInUse&) = delete;
  DevicesInUse& operator=(const DevicesInUse&) = delete;

  // nullptr where it was not opened.
  Device* find(int number) const noexcept {
    // Pairs with the release store in open().
    return devices_[static_cast<size_t>(number)].load(std::memory_order_acquire);
  }

  // The model's thread: made by `make()`, a unique_ptr, where it was not opened. nullptr, with a
  // reason for people, where make() throws GpuFailure, which is not tried again.
  template <typename Make>
  Device* open(int number, Make&& make, std::string& reason) {
    if (number < 0 || number >= kMaxDevices) {
      reason = "only the first 16 GPUs of a process are observed";
      return nullptr;
    }
    if (Device* device = find(number)) return device;
    std::string& refused = refused_[static_cast<size_t>(number)];
    if (refused.empty()) {
      try {
        Device* device = make().release();
        // Pairs with the acquire load in find().
        devices_[static_cast<size_t>(number)].store(device, std::memory_order_release);
        return device;
      } catch (const GpuFailure& failure) {
        refused = failure.what();
      }
    }
    reason = refused;
    return nullptr;
  }

  // The collector: of the room for results, records(device), which part was taken since it was
  // asked last, of the fullest.
  template <typename Records>
  double fullness(Records&& records) noexcept {
    double fullest = 0;
    for (int number = 0; number < kMaxDevices; ++number) {
      Device* device = find(number);
      if (device == nullptr) continue;
      fullest = std::max(fullest, static_cast<double>(device->launched_since()) /
                                      static_cast<double>(records(*device)));
    }
    return fullest;
  }

 private:
  std::array<std::string, kMaxDevices> refused_;  // why a device cannot be set up
  std::array<std::atomic<Device*>, kMaxDevices> devices_{};
};

}  // namespace pertoken::cuda
