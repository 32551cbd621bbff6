// What observes on devices, as the collector knows it: something whose results arrive behind the
// device, and that hands over what has arrived when it is asked in a drain round.
#pragma once

#include <cstdint>
#include <string>

namespace pertoken {

class ObservationIntake;
struct ThreadBuffer;

// What was to be observed on a device and did not come out, by reason.
struct ObservationLosses {
  uint64_t no_room = 0;     // as many results were on their way as there is room for
  uint64_t in_capture = 0;  // the stream was being captured, and the kernel could not be
  uint64_t late = 0;        // the device did not get there in time
  uint64_t failed = 0;      // the device or its context had failed
  uint64_t lost = 0;        // overwritten before they were read
  std::string failure;      // the first error, for people; empty without one
};

class DeviceResults {
 public:
  virtual ~DeviceResults() = default;

  // All of these are called by one thread at a time, under the recorder's mutex.
  //
  // Of the room for results, which part was taken since the last round: how soon to come again.
  virtual double fullness() noexcept = 0;
  // Whether there is something that a later round may yield.
  virtual bool is_pending() noexcept = 0;
  // From the next round on, what is pending and has not arrived counts as late.
  virtual void give_up() noexcept = 0;
  virtual ObservationLosses losses() = 0;
};

// Of tensors.
class ObservationSource : public DeviceResults {
 public:
  // Hands over what is known by now, in the order in which it was made; never waits for a device.
  // Throws std::bad_alloc.
  virtual void collect(double ns_per_tick, ObservationIntake& into) = 0;
};

// Of the logits of tokens.
class LogitSource : public DeviceResults {
 public:
  // Pushes a record a token that is known by now, in any order; never waits for a device.
  virtual void collect(double ns_per_tick, ThreadBuffer& into) = 0;
};

}  // namespace pertoken
