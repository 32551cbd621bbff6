// Observations on their way to the collector. Pushed by the threads that make them, a few times in
// an observed step; the lock is held for no longer than it takes to move one, or to copy its frame
// where they are spooled. Bounded: what does not fit is dropped and counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/observation.h"
#include "core/spool_frame.h"
#include "core/spool_journal.h"
#include "core/wake_signal.h"

namespace pertoken {

// What the collector takes in one round, in the order in which it was pushed.
struct TakenObservations {
  std::vector<Observation> observations;
  uint64_t first_number = 0;          // of the first among all that were pushed
  size_t framed = 0;                  // so many of them, the first ones,
  std::span<const std::byte> frames;  // lie here
  int64_t last_step = 0;              // what the steps of the others are to be widened against
};

class ObservationIntake {
 public:
  static constexpr size_t kMostWaiting = size_t{1} << 14;

  // `collector` is woken when it is half full; may be null.
  explicit ObservationIntake(WakeSignal* collector = nullptr) : collector_(collector) {}

  // From the first one on, what is pushed lies in a mapped file as well, until it is released. Only
  // before anything is pushed.
  void spool_into(std::string path);
  // Throws std::bad_alloc.
  void push(Observation&& observation);
  // `last_step`: what the steps of these and of later ones are to be widened against.
  TakenObservations take(int64_t last_step);
  // Gives back what take() returned as frames, once it is elsewhere.
  void release(std::span<const std::byte> frames) noexcept;
  uint64_t dropped();

  // Held over a fork.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }
  // In a forked child: the file is the parent's.
  void leave_file() noexcept;

 private:
  bool add_to_journal(const Observation& observation) noexcept;

  WakeSignal* const collector_;
  std::mutex mutex_;
  std::vector<Observation> waiting_;
  uint64_t pushed_ = 0;        // dropped ones included
  uint64_t first_number_ = 0;  // of the first that waits
  uint64_t dropped_ = 0;
  std::string journal_path_;  // empty: not spooled
  std::optional<SpoolJournal> journal_;
  // Of those that wait. Once one has found no room, no later one goes in: so the order holds.
  size_t journaled_ = 0;
  int64_t last_step_ = 0;
  FrameText frame_;
};

}  // namespace pertoken
