// What logits in the memory of GPUs say of the tokens of a recording. The model's thread enqueues
// two kernels: one behind what made the logits, which reads them once and keeps what they say and,
// where it may be needed, a copy; and one when it is known which tokens were committed, which tells
// of these, with the log-probability where a token's id is given, or lies on the device too. The
// collector takes the results when they arrive. Neither waits for the other, nor for the GPU, and
// the collector asks nothing of the driver.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/device_results.h"
#include "core/spsc_ring.h"
#include "cuda/device_clock.h"
#include "cuda/devices_in_use.h"
#include "cuda/gpu_place.h"
#include "cuda/logit_device.h"
#include "cuda/results_under_way.h"

namespace pertoken::cuda {

// What was read of a step's logits, in the memory of a GPU, until it is given up: then the same
// stream uses the memory again. By the thread that reads and tells.
class KeptLogitRows {
 public:
  KeptLogitRows() = default;
  ~KeptLogitRows() { give_back(); }
  KeptLogitRows(const KeptLogitRows&) = delete;
  KeptLogitRows& operator=(const KeptLogitRows&) = delete;

  int device() const noexcept { return number_; }
  bool has_copies() const noexcept { return has_copies_; }

 private:
  friend class GpuLogits;

  void give_back() noexcept {
    if (slab_ != nullptr) LogitDevice::give_back(*slab_);
    slab_ = nullptr;
  }

  std::shared_ptr<LogitDevice> device_;
  LogitDevice::Slab* slab_ = nullptr;
  int number_ = -1;
  uint32_t vocabulary_ = 0;
  FloatFormat format_ = FloatFormat::kFloat32;
  bool has_copies_ = false;
};

class GpuLogits final : public LogitSource {
 public:
  // `ticks` is the host's clock, for tests to replace.
  explicit GpuLogits(LogitDevices& devices, HostTicks ticks = now_ticks);
  ~GpuLogits() override;
  GpuLogits(const GpuLogits&) = delete;
  GpuLogits& operator=(const GpuLogits&) = delete;

  // Sets a device up, unless it is: milliseconds. False, with a reason for people, where it cannot
  // be, which is not tried again.
  bool prepare(int device, std::string& reason);

  // These are hot, but for the first time on a device and for rows that need more memory than any
  // before. Called by one thread at a time. False where nothing was enqueued: with a reason for
  // people, or counted in losses(), a token each.
  //
  // The logits may be overwritten on their stream right after. `copied`: so that tokens that are
  // known later can be found in them; where there is no room for copies, there are none. Throws
  // std::bad_alloc.
  bool read(const GpuPlace& place, const GpuLogitRows& rows, bool copied, KeptLogitRows& kept,
            std::string& reason);
  // On the stream that they were read on, as often as need be. A token's `kept` is its row's number
  // in what was read. `fed` is read on the device, behind what is enqueued there.
  bool tell(const GpuPlace& place, const KeptLogitRows& kept, uint32_t step, float weight,
            std::span<const ToldToken> tokens, const DeviceTokens& fed,
            std::string& reason) noexcept;

  void collect(double ns_per_tick, ThreadBuffer& into) override;
  double fullness() noexcept override;
  bool is_pending() noexcept override;
  void give_up() noexcept override;
  ObservationLosses losses() override;

 private:
  static constexpr size_t kMessages = 4096;

  struct Device : ResultsUnderWay {
    explicit Device(std::shared_ptr<LogitDevice>&& opened) : kernels(std::move(opened)) {}
    std::shared_ptr<LogitDevice> kernels;
  };

  // A launch, or, where `loss` is set, that the one of that number was none.
  struct Message {
    uint64_t ticks;
    uint32_t launch;
    uint32_t step;
    uint32_t tokens;
    float weight;
    uint8_t device;
    Loss loss;
  };

  // A launch that the collector knows of.
  struct Pending {
    Message message;
    uint32_t missing;
  };

  Device* device_of(int number, std::string& reason);
  // Whether work can be enqueued on the stream, whose number the driver gives; counted if not.
  bool find_stream(Device& device, CUstream stream, unsigned long long& number,
                   uint64_t tokens) noexcept;
  bool launch(Device& device, const GpuPlace& place, Message& message, TellArgs& args) noexcept;

  void read_messages();
  void match(int number, std::span<const uint64_t> record, ThreadBuffer& into) noexcept;
  void lose(Pending& pending, Loss loss) noexcept;

  LogitDevices& pool_;
  const HostTicks ticks_;
  DevicesInUse<Device> devices_;
  uint32_t launch_ = 0;  // the model's thread: the last one's number
  SpscRing<Message> ring_;
  LostResults lost_;

  // The collector's.
  struct Arrived {
    int device;
    std::array<uint64_t, kLogitRecordWords> words;
  };
  std::vector<Arrived> arrived_;  // in this round
  std::deque<Pending> pending_;   // as they were launched
};

}  // namespace pertoken::cuda
