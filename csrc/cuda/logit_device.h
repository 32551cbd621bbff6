// The logit kernels on a GPU, set up: what reads rows of logits and tells of the tokens that were
// chosen from them. One launch each for up to kLogitRows rows, on the stream that made the logits:
// launching neither waits nor calls a library. What was read stays in the device's memory until
// then, in slabs that go from one step to the next.
//
// Calls of take() by one thread at a time, of all others by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/float_bits.h"
#include "cuda/driver_api.h"
#include "cuda/logit_block.h"
#include "cuda/opened_context.h"
#include "cuda/spare_devices.h"
#include "cuda/tagged_reader.h"

namespace pertoken::cuda {

// Rows of logits in the memory of a GPU.
struct GpuLogitRows {
  std::span<const uint64_t> addresses;  // of the first logit of each
  int64_t stride_bytes;
  uint32_t vocabulary;
  FloatFormat format;
  uint32_t places;  // row r of the batch has numbers from r * places on
  DeviceTokens drafts;
};

class LogitDevice {
 public:
  static constexpr uint32_t kRecordsLog2 = 12;  // that may wait to be taken; 56 bytes each
  // Of all slabs together; one that is made stays.
  static constexpr uint64_t kMostSlabBytes = uint64_t{256} << 20;
  static constexpr uint64_t kLeastSlabBytes = uint64_t{64} << 10;

  // What is used on one stream alone, so that its order is that of what is done with it.
  struct Slab {
    CUdeviceptr memory;
    uint64_t bytes;
    unsigned long long stream;
    bool is_taken;
  };

  // Throws GpuFailure.
  LogitDevice(const DriverApi& api, std::span<const std::byte> image, int ordinal);
  LogitDevice(const LogitDevice&) = delete;
  LogitDevice& operator=(const LogitDevice&) = delete;

  CUcontext context() const noexcept { return context_; }
  uint64_t records() const noexcept { return uint64_t{1} << ring_.capacity_log2; }

  // With the context current, from here on. A slab for the stream with that number of the driver's,
  // which may have to be made, in some tenths of a millisecond; nullptr where there is no room.
  // Throws std::bad_alloc.
  Slab* take_slab(uint64_t bytes, unsigned long long stream);
  static void give_back(Slab& slab) noexcept { slab.is_taken = false; }
  // Room for so many rows and, where `copied`, for copies of them.
  static uint64_t slab_bytes(uint64_t rows, uint64_t copy_bytes, bool copied) noexcept;
  // From one copy of such rows to the next.
  static uint64_t copy_bytes(const GpuLogitRows& rows) noexcept;

  // Hot. The slab has slab_bytes() of them.
  CUresult read(const GpuLogitRows& rows, const Slab& slab, bool copied, CUstream stream) noexcept;
  // Hot. `args.kept` is the slab's; each token leaves a record.
  CUresult tell(TellArgs& args, CUstream stream) noexcept;

  // The words of the next record, empty where there is none yet.
  std::span<const uint64_t> take() noexcept { return reader_->take(); }

 private:
  CUresult set_up(std::span<const std::byte> image);

  const DriverApi& api_;
  CUcontext context_ = nullptr;
  CUfunction read_ = nullptr;
  CUfunction tell_ = nullptr;
  DeviceRing ring_{};
  std::unique_ptr<TaggedReader> reader_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  uint64_t slab_bytes_ = 0;
};

// Hands them out to recordings, one device to one at a time. Any thread.
class LogitDevices {
 public:
  LogitDevices(const DriverApi& api, std::span<const std::byte> image) : api_(api), image_(image) {}

  const DriverApi& api() const noexcept { return api_; }
  // Throws GpuFailure.
  std::shared_ptr<LogitDevice> take(int ordinal);
  // One that works, and whose results were all taken.
  void give_back(int ordinal, std::shared_ptr<LogitDevice>&& device);

 private:
  const DriverApi& api_;
  const std::span<const std::byte> image_;
  SpareDevices<std::shared_ptr<LogitDevice>> spare_;
};

}  // namespace pertoken::cuda
