// Devices that were set up and are not in use: what one recording gives back the next one takes,
// since nothing of them is ever freed. Any thread.
#pragma once

#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace pertoken::cuda {

template <typename Device>
class SpareDevices {
 public:
  // One of that number; by `open()` where there is none to spare.
  template <typename Open>
  Device take(int ordinal, Open&& open) {
    const std::lock_guard lock(mutex_);
    std::vector<Device>& spare = spare_[ordinal];
    if (spare.empty()) return open();
    Device device = std::move(spare.back());
    spare.pop_back();
    return device;
  }
  void give_back(int ordinal, Device&& device) {
    const std::lock_guard lock(mutex_);
    spare_[ordinal].push_back(std::move(device));
  }

 private:
  std::mutex mutex_;
  std::map<int, std::vector<Device>> spare_;
};

}  // namespace pertoken::cuda
