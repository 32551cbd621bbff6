#include "cuda/gpu_logits.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/thread_buffer.h"
#include "core/token_logits.h"
#include "cuda/driver_scope.h"
#include "cuda/stream_capture.h"

namespace pertoken::cuda {
namespace {

uint64_t content_of(std::span<const uint64_t> record, LogitWord word) noexcept {
  return record[static_cast<size_t>(word)];
}

float float_of(std::span<const uint64_t> record, LogitWord word) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(content_of(record, word)));
}

// Why the kernel cannot read them; nullptr where it can.
const char* refusal_of(const GpuLogitRows& rows) noexcept {
  if (rows.format != FloatFormat::kFloat32 && rows.format != FloatFormat::kFloat16 &&
      rows.format != FloatFormat::kBFloat16) {
    return "on a GPU they are read as float32, float16 and bfloat16 alone";
  }
  auto low_bits = static_cast<uint64_t>(rows.stride_bytes);
  for (const uint64_t address : rows.addresses) low_bits |= address;
  if (low_bits % static_cast<uint64_t>(bytes_of(rows.format)) != 0) {
    return "their values are not aligned to their size";
  }
  return nullptr;
}

}  // namespace

GpuLogits::GpuLogits(LogitDevices& devices, HostTicks ticks)
    : pool_(devices), ticks_(ticks), ring_(kMessages) {}

// What kernels may still write to is not given to another recording.
GpuLogits::~GpuLogits() {
  for (int number = 0; number < kMaxDevices; ++number) {
    Device* device = devices_.find(number);
    if (device != nullptr && device->is_settled()) {
      pool_.give_back(number, std::move(device->kernels));
    }
  }
}

bool GpuLogits::prepare(int device, std::string& reason) {
  return device_of(device, reason) != nullptr;
}

GpuLogits::Device* GpuLogits::device_of(int number, std::string& reason) {
  return devices_.open(
      number, [&] { return std::make_unique<Device>(pool_.take(number)); }, reason);
}

bool GpuLogits::find_stream(Device& device, CUstream stream, unsigned long long& number,
                            uint64_t tokens) noexcept {
  Loss loss = Loss::kFailed;
  if (device.is_alive.load(std::memory_order_relaxed)) {
    const DriverApi& api = pool_.api();
    CUresult result = CUDA_SUCCESS;
    const StreamUse use = stream_use(api, stream, result);
    if (use == StreamUse::kRuns) result = api.cuStreamGetId(stream, &number);
    if (use == StreamUse::kRuns && result == CUDA_SUCCESS) return true;
    loss = result == CUDA_SUCCESS ? Loss::kInCapture : lost_.loss_of(device, result);
  }
  lost_.count(loss, tokens);
  return false;
}

bool GpuLogits::read(const GpuPlace& place, const GpuLogitRows& rows, bool copied,
                     KeptLogitRows& kept, std::string& reason) {
  Device* device = device_of(place.device, reason);
  if (device == nullptr) return false;
  if (const char* refusal = refusal_of(rows)) {
    reason = refusal;
    return false;
  }
  const uint64_t count_of_rows = rows.addresses.size();
  // The default stream is that of the current context, which need not be this device's.
  const CurrentContext current(pool_.api(), device->kernels->context());
  if (current.result() != CUDA_SUCCESS) {
    lost_.count(lost_.loss_of(*device, current.result()), count_of_rows);
    return false;
  }
  unsigned long long stream = 0;
  if (!find_stream(*device, place.stream, stream, count_of_rows)) return false;
  const uint64_t copy_bytes = LogitDevice::copy_bytes(rows);
  const uint64_t least = LogitDevice::slab_bytes(count_of_rows, copy_bytes, false);
  const uint64_t wanted = LogitDevice::slab_bytes(count_of_rows, copy_bytes, copied);
  const bool goes_on =
      kept.slab_ != nullptr && kept.device_ == device->kernels && kept.slab_->stream == stream;
  if (!goes_on || kept.slab_->bytes < wanted) {
    kept.give_back();
    kept.slab_ = device->kernels->take_slab(wanted, stream);
    if (kept.slab_ == nullptr) kept.slab_ = device->kernels->take_slab(least, stream);
    kept.device_ = device->kernels;
    kept.number_ = place.device;
    if (kept.slab_ == nullptr) {
      lost_.count(Loss::kNoRoom, count_of_rows);
      return false;
    }
  }
  kept.has_copies_ = copied && kept.slab_->bytes >= wanted;
  kept.vocabulary_ = rows.vocabulary;
  kept.format_ = rows.format;
  const CUresult result = device->kernels->read(rows, *kept.slab_, kept.has_copies_, place.stream);
  if (result == CUDA_SUCCESS) return true;
  lost_.count(lost_.loss_of(*device, result), count_of_rows);
  return false;
}

bool GpuLogits::tell(const GpuPlace& place, const KeptLogitRows& kept, uint32_t step, float weight,
                     std::span<const ToldToken> tokens, const DeviceTokens& fed,
                     std::string& reason) noexcept {
  if (kept.slab_ == nullptr) return false;
  Device* device = devices_.find(kept.number_);
  if (device == nullptr || kept.device_ != device->kernels) return false;
  const CurrentContext current(pool_.api(), device->kernels->context());
  if (current.result() != CUDA_SUCCESS) {
    lost_.count(lost_.loss_of(*device, current.result()), tokens.size());
    return false;
  }
  unsigned long long stream = 0;
  if (!find_stream(*device, place.stream, stream, tokens.size())) return false;
  if (stream != kept.slab_->stream || place.device != kept.number_) {
    reason = "the stream had changed when it was known which tokens were committed";
    return false;
  }
  TellArgs args{};
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of the GPU.
  args.kept = reinterpret_cast<const KeptRow*>(kept.slab_->memory);
  args.fed = fed;
  args.vocabulary = kept.vocabulary_;
  args.format = kept.format_;
  bool is_all = true;
  for (size_t first = 0; first < tokens.size(); first += kLogitRows) {
    const auto part = tokens.subspan(first, std::min<size_t>(tokens.size() - first, kLogitRows));
    std::copy(part.begin(), part.end(), args.tokens);
    args.count = static_cast<uint32_t>(part.size());
    Message message{.ticks = ticks_(),
                    .launch = launch_ + 1,
                    .step = step,
                    .tokens = args.count,
                    .weight = weight,
                    .device = static_cast<uint8_t>(kept.number_),
                    .loss = Loss::kNone};
    is_all &= launch(*device, place, message, args);
  }
  return is_all;
}

// Tells the collector first: a result comes after the message of its launch.
bool GpuLogits::launch(Device& device, const GpuPlace& place, Message& message,
                       TellArgs& args) noexcept {
  if (!device.is_alive.load(std::memory_order_relaxed)) {
    lost_.count(Loss::kFailed, message.tokens);
    return false;
  }
  // A result that nobody has taken must not be overwritten.
  if (device.count() + message.tokens > device.kernels->records() || !ring_.try_push(message)) {
    lost_.count(Loss::kNoRoom, message.tokens);
    return false;
  }
  launch_ = message.launch;
  device.add_launched(message.tokens);
  args.launch = message.launch;
  const CUresult result = device.kernels->tell(args, place.stream);
  if (result == CUDA_SUCCESS) return true;
  message.loss = lost_.loss_of(device, result);
  // Where the collector is not told, it takes what does not come for late.
  ring_.try_push(message);
  return false;
}

void GpuLogits::read_messages() {
  for (auto messages = ring_.readable(); !messages.empty(); messages = ring_.readable()) {
    for (const Message& message : messages) {
      if (message.loss == Loss::kNone) {
        pending_.push_back({message, message.tokens});
        continue;
      }
      // Of the last launch.
      if (!pending_.empty() && pending_.back().message.launch == message.launch) {
        pending_.back().message.loss = message.loss;
      }
    }
    ring_.release(messages.size());
  }
}

// A result of a launch that was given up comes too late.
void GpuLogits::match(int number, std::span<const uint64_t> record, ThreadBuffer& into) noexcept {
  const auto launch = static_cast<uint32_t>(content_of(record, LogitWord::kLaunch));
  const uint32_t oldest = pending_.empty() ? 0 : pending_.front().message.launch;
  const size_t place = launch - oldest;
  if (place >= pending_.size()) return;
  Pending& pending = pending_[place];
  const Message& message = pending.message;
  if (message.device != number || pending.missing == 0 || message.loss != Loss::kNone) return;
  --pending.missing;
  devices_.find(message.device)->done.fetch_add(1, std::memory_order_relaxed);
  into.push(record_of({.step = message.step,
                       .row = static_cast<uint32_t>(content_of(record, LogitWord::kRow)),
                       .place = static_cast<uint32_t>(content_of(record, LogitWord::kPlace)),
                       .top1_prob = float_of(record, LogitWord::kTop1Prob),
                       .margin = float_of(record, LogitWord::kMargin),
                       .entropy = float_of(record, LogitWord::kEntropy),
                       .logprob = float_of(record, LogitWord::kLogprob),
                       .weight = message.weight}));
}

void GpuLogits::collect(double ns_per_tick, ThreadBuffer& into) {
  // A device that was dead before its results were taken leaves no more of them.
  std::array<bool, kMaxDevices> was_alive{};
  arrived_.clear();
  for (int number = 0; number < kMaxDevices; ++number) {
    Device* device = devices_.find(number);
    if (device == nullptr) continue;
    was_alive[static_cast<size_t>(number)] = device->is_alive.load(std::memory_order_acquire);
    for (auto record = device->kernels->take(); !record.empty(); record = device->kernels->take()) {
      Arrived& arrived = arrived_.emplace_back(Arrived{number, {}});
      std::copy(record.begin(), record.end(), arrived.words.begin());
    }
  }
  // A result comes after the message of its launch, by way of the GPU; the messages must be read
  // after it here, too.
  std::atomic_thread_fence(std::memory_order_acquire);
  read_messages();
  for (const Arrived& arrived : arrived_) match(arrived.device, arrived.words, into);
  const uint64_t now = ticks_();
  while (!pending_.empty()) {
    Pending& oldest = pending_.front();
    const Message& message = oldest.message;
    if (oldest.missing != 0 && message.loss == Loss::kNone) {
      const Loss loss = loss_by_now(was_alive[message.device], message.ticks, now, ns_per_tick);
      if (loss == Loss::kNone) return;
      lose(oldest, loss);
    }
    if (oldest.missing != 0) lost_.count(message.loss, oldest.missing);
    devices_.find(message.device)->done.fetch_add(oldest.missing, std::memory_order_relaxed);
    pending_.pop_front();
  }
}

// What was launched and not seen to arrive may arrive later still.
void GpuLogits::lose(Pending& pending, Loss loss) noexcept {
  pending.message.loss = loss;
  devices_.find(pending.message.device)->given_up += pending.missing;
}

double GpuLogits::fullness() noexcept {
  return devices_.fullness([](const Device& device) { return device.kernels->records(); });
}

bool GpuLogits::is_pending() noexcept { return !pending_.empty() || !ring_.readable().empty(); }

void GpuLogits::give_up() noexcept {
  for (Pending& pending : pending_) {
    if (pending.missing != 0 && pending.message.loss == Loss::kNone) lose(pending, Loss::kLate);
  }
}

ObservationLosses GpuLogits::losses() { return lost_.losses(pool_.api()); }

}  // namespace pertoken::cuda
