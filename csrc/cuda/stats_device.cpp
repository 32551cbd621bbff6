#include "cuda/stats_device.h"

#include <string>
#include <utility>

namespace pertoken::cuda {

StatsDevice open_stats_device(const DriverApi& api, std::span<const std::byte> image, int ordinal,
                              uint32_t records_log2) {
  StatsDevice opened{};
  std::string reason;
  opened.context = open_context(api, ordinal, [&] {
    opened.stats = GpuStats::make(api, image, reason, records_log2);
    return opened.stats != nullptr;
  });
  if (opened.stats == nullptr) throw GpuFailure(reason);
  return opened;
}

StatsDevice StatsDevices::take(int ordinal) {
  return spare_.take(ordinal,
                     [&] { return open_stats_device(api_, image_, ordinal, records_log2_); });
}

void StatsDevices::give_back(int ordinal, StatsDevice&& device) {
  spare_.give_back(ordinal, std::move(device));
}

}  // namespace pertoken::cuda
