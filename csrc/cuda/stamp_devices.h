// The stamps of each device, made when a model is first captured there. One of these a process,
// since captured graphs outlive recordings. Any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "cuda/driver_api.h"
#include "cuda/graph_stamps.h"

namespace pertoken::cuda {

class StampDevices {
 public:
  static constexpr int kMaxDevices = 16;

  StampDevices(const DriverApi& api, std::span<const std::byte> image,
               uint32_t ring_log2 = GraphStamps::kRingLog2, uint32_t graphs = GraphStamps::kGraphs)
      : api_(api), image_(image), ring_log2_(ring_log2), graphs_(graphs) {}

  // With the device's context current. nullptr, with a reason for people, where there are none to
  // be had; that is not tried again.
  GraphStamps* make(int device, std::string& reason) {
    const std::lock_guard lock(mutex_);
    Device& held = devices_.at(static_cast<size_t>(device));
    if (held.stamps == nullptr && held.reason.empty()) {
      held.stamps = GraphStamps::make(api_, image_, held.reason, ring_log2_, graphs_);
      // Pairs with the acquire load in find().
      held.found.store(held.stamps.get(), std::memory_order_release);
    }
    reason = held.reason;
    return held.stamps.get();
  }
  // Hot: nullptr where nothing was captured.
  GraphStamps* find(int device) const noexcept {
    return devices_[static_cast<size_t>(device)].found.load(std::memory_order_acquire);
  }
  const DriverApi& api() const noexcept { return api_; }

 private:
  struct Device {
    std::unique_ptr<GraphStamps> stamps;
    std::atomic<GraphStamps*> found{nullptr};
    std::string reason;
  };

  const DriverApi& api_;
  const std::span<const std::byte> image_;
  const uint32_t ring_log2_;
  const uint32_t graphs_;
  std::mutex mutex_;
  std::array<Device, kMaxDevices> devices_;
};

}  // namespace pertoken::cuda
