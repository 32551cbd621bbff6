#include "cuda/gpu_observer.h"

#include <algorithm>
#include <utility>

#include "cuda/driver_scope.h"
#include "cuda/stream_capture.h"

namespace pertoken::cuda {
namespace {

uint32_t results_of(std::span<const ValidRun> runs, int64_t row) noexcept {
  uint32_t results = 0;
  for (const ValidRun& run : runs) results += row == kAllRows || run.row == row;
  return results;
}

}  // namespace

GpuObserver::GpuObserver(StatsDevices& devices, HostTicks ticks)
    : pool_(devices), ticks_(ticks), ring_(kMessages) {}

// What kernels may still write to is not given to another recording.
GpuObserver::~GpuObserver() {
  for (int number = 0; number < kMaxDevices; ++number) {
    Device* device = devices_.find(number);
    // Graphs that hold it stay switched off.
    if (device != nullptr && device->is_settled() && device->is_switched_off &&
        !device->stats.stats->is_worn()) {
      pool_.give_back(number, std::move(device->stats));
    }
  }
}

bool GpuObserver::prepare(int device, std::string& reason) {
  return device_of(device, reason) != nullptr;
}

GpuObserver::Device* GpuObserver::device_of(int number, std::string& reason) {
  return devices_.open(
      number, [&] { return std::make_unique<Device>(pool_.take(number)); }, reason);
}

uint32_t GpuObserver::rings_of(const Message& message) noexcept {
  return message.graph == nullptr ? 1 : message.graph->rings;
}

uint32_t GpuObserver::results_in(const Message& message, uint32_t ring) noexcept {
  return message.graph == nullptr ? message.rows : message.graph->in_ring[ring];
}

// A result that nobody has taken must not be overwritten.
bool GpuObserver::has_room(const Device& device, uint32_t ring, uint64_t results) noexcept {
  return device.rings[ring].count() + results <= device.stats.stats->records();
}

bool GpuObserver::has_room(const Device& device, const Message& message) noexcept {
  for (uint32_t ring = 0; ring < rings_of(message); ++ring) {
    if (!has_room(device, ring, results_in(message, ring))) return false;
  }
  return true;
}

bool GpuObserver::observe(const GpuPlace& place, const ObservationLabels& labels,
                          const TensorView& view, bool by_row, std::string& reason) {
  Device* device = device_of(place.device, reason);
  if (device == nullptr) return false;
  GpuStats& stats = *device->stats.stats;
  auto plan = plan_stats(view, stats.multiprocessors(), reason, by_row);
  if (!plan) return false;
  if (plan->blocks == 0) return true;
  launch(*device, place, labels, view.format, {*plan, by_row ? 0 : kAllRows, true, false});
  return true;
}

bool GpuObserver::observe_runs(const GpuPlace& place, const ObservationLabels& labels,
                               const TensorView& view, std::span<const ValidRun> runs, int64_t row,
                               std::string& reason) {
  Device* device = device_of(place.device, reason);
  if (device == nullptr) return false;
  uint32_t left = results_of(runs, row);
  if (left == 0) {  // a row of nothing but padding
    const Part nothing{{.rows = 0}, static_cast<int32_t>(row), true, false};
    launch(*device, place, labels, view.format, nothing);
    return true;
  }
  if (!has_room(*device, 0, left)) {
    lost_.count(Loss::kNoRoom, 1);
    return true;
  }
  bool is_first = true;
  for (const ValidRun& run : runs) {
    if (row != kAllRows && run.row != row) continue;
    const TensorView of_row = slice_of(view, 0, run.batch_row, run.batch_row + 1);
    const auto plan = plan_stats(slice_of(of_row, 1, run.begin, run.end),
                                 device->stats.stats->multiprocessors(), reason);
    if (!plan) return false;  // the first of them, as the strides are the same for all
    const Part part{*plan, static_cast<int32_t>(row), is_first, --left != 0};
    is_first = false;
    if (!launch(*device, place, labels, view.format, part)) return true;
  }
  return true;
}

// False where there is no launch, which is counted.
bool GpuObserver::launch(Device& device, const GpuPlace& place, const ObservationLabels& labels,
                         FloatFormat format, const Part& part) noexcept {
  Message message{.ticks = 0,
                  .repeats = part.plan.repeats,
                  .weight = labels.weight,
                  .graph = nullptr,
                  .launch = 0,
                  .step = labels.step,
                  .site = labels.site,
                  .rows = part.plan.rows,
                  .row = part.row,
                  .device = static_cast<uint8_t>(place.device),
                  .kind = labels.kind,
                  .format = format,
                  .loss = Loss::kNone,
                  .is_first = part.is_first,
                  .goes_on = part.goes_on};
  if (!announce(device, message)) return false;
  const Loss loss = enqueue(device, place, format, part.plan, message.launch);
  if (loss == Loss::kNone) return true;
  withdraw(message, loss);
  return false;
}

// Tells the collector of what is about to be launched, and numbers it. False where there is no room
// for its results, which is counted.
bool GpuObserver::announce(Device& device, Message& message) noexcept {
  const uint32_t observations = std::max(message.rows, 1U);
  if (!device.is_alive.load(std::memory_order_relaxed)) {
    lost_.count(Loss::kFailed, observations);
    return false;
  }
  message.ticks = ticks_();
  message.launch = (launch_ + 1) & kLaunchMask;
  if (!has_room(device, message) || !ring_.try_push(message)) {
    lost_.count(Loss::kNoRoom, observations);
    return false;
  }
  launch_ = message.launch;
  // Before the launch, so that none is done with that was not begun.
  device.add_launched(message.rows);
  for (uint32_t ring = 0; ring < rings_of(message); ++ring) {
    device.rings[ring].add_launched(results_in(message, ring));
  }
  return true;
}

// Where there is no room for this, the launch counts as late in the end.
void GpuObserver::withdraw(Message& message, Loss loss) noexcept {
  message.loss = loss;
  static_cast<void>(ring_.try_push(message));
}

Loss GpuObserver::enqueue(Device& device, const GpuPlace& place, FloatFormat format,
                          const StatsPlan& plan, uint32_t number) noexcept {
  const DriverApi& api = pool_.api();
  // The default stream is that of the current context, which need not be this device's.
  const CurrentContext current(api, device.stats.context);
  if (current.result() != CUDA_SUCCESS) return lost_.loss_of(device, current.result());
  CUresult result = CUDA_SUCCESS;
  switch (stream_use(api, place.stream, result)) {
    case StreamUse::kRuns:
      result = device.stats.stats->launch(plan, format, place.stream, number);
      return result == CUDA_SUCCESS ? Loss::kNone : lost_.loss_of(device, result);
    case StreamUse::kFailed:
      return lost_.loss_of(device, result);
    default:
      return Loss::kInCapture;
  }
}

void GpuObserver::take_results(int number) {
  Device* device = devices_.find(number);
  if (device == nullptr) return;
  while (true) {
    Arrived arrived{number, {}};
    if (!device->stats.stats->take(arrived.result)) return;
    arrived_.push_back(std::move(arrived));
  }
}

// Each message is about a launch of its own, but for those that say that the last launch failed.
void GpuObserver::read_messages() {
  for (auto messages = ring_.readable(); !messages.empty(); messages = ring_.readable()) {
    for (const Message& message : messages) {
      if (message.loss == Loss::kNone) {
        pending_.push_back({message, message.rows, {}});
        pending_.back().values.resize(message.rows);
        continue;
      }
      const uint32_t oldest = pending_.empty() ? 0 : pending_.front().message.launch;
      const size_t place = (message.launch - oldest) & kLaunchMask;
      if (place >= pending_.size()) continue;
      Pending& none = pending_[place];
      none.message.goes_on = false;
      if (none.message.graph == nullptr) {
        none.message.loss = message.loss;
      } else {
        lose(none, message.loss);  // nobody knows how far the replay came
      }
    }
    ring_.release(messages.size());
  }
}

// A result of a launch that was given up comes too late.
void GpuObserver::match_results() {
  for (const auto& [number, result] : arrived_) {
    const uint32_t oldest = pending_.empty() ? 0 : pending_.front().message.launch;
    const bool is_replay = result.replay != 0;
    const uint32_t launch = is_replay ? launch_of_word(result.replay) : result.launch;
    const size_t place = (launch - oldest) & kLaunchMask;
    if (place >= pending_.size()) continue;
    Pending& pending = pending_[place];
    const Message& message = pending.message;
    if (message.device != number || is_replay != (message.graph != nullptr)) continue;
    uint32_t first = 0;
    uint32_t rows = message.rows;
    uint32_t ring = 0;
    uint64_t repeats = message.repeats;
    if (is_replay) {
      if (result.launch >= message.graph->launches.size()) continue;
      const CapturedLaunch& captured = message.graph->launches[result.launch];
      first = captured.first_result;
      rows = captured.rows;
      ring = captured.ring;
      repeats = captured.repeats;
    }
    if (result.row >= rows || result.ring != ring) continue;
    auto& values = pending.values[first + result.row];
    if (values.has_value()) continue;
    values = result.histogram(kDefaultHistogramScale, repeats);
    --pending.missing;
    Device& device = *devices_.find(message.device);
    device.done.fetch_add(1, std::memory_order_relaxed);
    device.rings[ring].done.fetch_add(1, std::memory_order_relaxed);
  }
  arrived_.clear();
}

void GpuObserver::collect(double ns_per_tick, ObservationIntake& into) {
  // A device that was dead before its results were taken leaves no more of them.
  std::array<bool, kMaxDevices> was_alive{};
  for (int number = 0; number < kMaxDevices; ++number) {
    Device* device = devices_.find(number);
    was_alive[static_cast<size_t>(number)] =
        device != nullptr && device->is_alive.load(std::memory_order_acquire);
    take_results(number);
  }
  // A result comes after the message of its launch, by way of the GPU; the messages must be read
  // after it here, too.
  std::atomic_thread_fence(std::memory_order_acquire);
  read_messages();
  match_results();
  const uint64_t now = ticks_();
  while (!pending_.empty()) {
    const Message& message = pending_.front().message;
    if (pending_.front().missing != 0 && message.loss == Loss::kNone) {
      const Loss loss = loss_by_now(was_alive[message.device], message.ticks, now, ns_per_tick);
      if (loss == Loss::kNone) return;
      lose(pending_.front(), loss);
    }
    settle_oldest(into);
  }
}

// What was launched and not seen to arrive may arrive later still.
void GpuObserver::lose(Pending& pending, Loss loss) noexcept {
  pending.message.loss = loss;
  Device& device = *devices_.find(pending.message.device);
  device.given_up += pending.missing;
}

// What has not come takes no more room.
void GpuObserver::count_missing(Device& device, const Pending& settled) noexcept {
  if (settled.missing == 0) return;
  device.done.fetch_add(settled.missing, std::memory_order_relaxed);
  if (settled.message.graph == nullptr) {
    device.rings[0].done.fetch_add(settled.missing, std::memory_order_relaxed);
    return;
  }
  for (const CapturedLaunch& launch : settled.message.graph->launches) {
    for (uint32_t row = 0; row < launch.rows; ++row) {
      if (settled.values[launch.first_result + row].has_value()) continue;
      device.rings[launch.ring].done.fetch_add(1, std::memory_order_relaxed);
    }
  }
}

// Hands over what has arrived of the oldest launch, and counts what has not.
void GpuObserver::settle_oldest(ObservationIntake& into) {
  Pending settled = std::move(pending_.front());
  pending_.pop_front();
  count_missing(*devices_.find(settled.message.device), settled);
  hand_over_settled(settled, into);
  // The graph may go now.
  CapturedGraph* const graph = settled.message.graph;
  if (graph != nullptr) graph->settled.fetch_add(1, std::memory_order_release);
}

void GpuObserver::hand_over_settled(Pending& settled, ObservationIntake& into) {
  const Message& message = settled.message;
  if (message.is_first && is_gathering_) drop_gathered();
  if (message.goes_on || is_gathering_) return gather(settled, into);
  if (settled.missing != 0) lost_.count(message.loss, settled.missing);
  if (message.graph != nullptr) return hand_over_replay(settled, into);
  if (message.rows == 0) hand_over(message, message.row, ExpHistogram{}, into);
  const int32_t first = message.row;
  for (int32_t i = 0; auto& values : settled.values) {
    if (values) hand_over(message, first == kAllRows ? first : first + i, std::move(*values), into);
    ++i;
  }
}

// Of an observation of several launches, each of one result: whole, or not at all.
void GpuObserver::gather(const Pending& part, ObservationIntake& into) {
  is_gathering_ = part.message.goes_on;
  if (gathered_loss_ == Loss::kNone) gathered_loss_ = part.message.loss;
  for (const auto& values : part.values) {
    if (values) gathered_.merge(*values);
  }
  if (is_gathering_) return;
  ExpHistogram gathered = std::exchange(gathered_, ExpHistogram{});
  if (const Loss loss = std::exchange(gathered_loss_, Loss::kNone); loss != Loss::kNone) {
    lost_.count(loss, 1);
  } else {
    hand_over(part.message, part.message.row, std::move(gathered), into);
  }
}

// There was no room to announce the rest of an observation, which was counted then.
void GpuObserver::drop_gathered() noexcept {
  is_gathering_ = false;
  gathered_ = ExpHistogram{};
  gathered_loss_ = Loss::kNone;
}

void GpuObserver::hand_over(const Message& message, int32_t row, ExpHistogram&& values,
                            ObservationIntake& into) {
  into.push({message.step, message.kind, row, message.site, message.format, message.weight,
             std::move(values)});
}

double GpuObserver::fullness() noexcept {
  return devices_.fullness([](const Device& device) { return device.stats.stats->records(); });
}

bool GpuObserver::is_pending() noexcept { return !pending_.empty() || !ring_.readable().empty(); }

void GpuObserver::give_up() noexcept {
  for (Pending& pending : pending_) {
    if (pending.missing != 0 && pending.message.loss == Loss::kNone) lose(pending, Loss::kLate);
  }
}

ObservationLosses GpuObserver::losses() { return lost_.losses(pool_.api()); }

}  // namespace pertoken::cuda
