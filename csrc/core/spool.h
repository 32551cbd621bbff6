// What a recording leaves for the time after a crash: its rings, the names of its sites, and all
// that the collector took, in files of one folder (spool_format.h). Bounded on the disk.
//
// What fails here is counted, and the recording goes on.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "core/clock_map.h"
#include "core/mapped_file.h"
#include "core/observation_intake.h"
#include "core/record.h"
#include "core/spool_frame.h"
#include "core/spool_journal.h"
#include "core/spool_segments.h"
#include "core/string_table.h"

namespace pertoken {

struct SpoolOptions {
  std::string folder;  // exists, and is empty but for what Python puts there
  size_t segment_bytes = size_t{32} << 20;
  size_t segments = 10;
};

// What becomes of a note when the segment that it is in is deleted.
enum class NoteScope : uint8_t {
  kOnce,    // it goes
  kOpens,   // it is told again, until one with its key closes it, where there is room for it
  kCloses,  // as kOnce
};

// The records of one track, in the order in which they were pushed.
struct RecordBatch {
  int32_t track;
  int64_t tid;
  std::string_view thread_name;
  uint64_t first_index;
  int64_t last_step;
  int64_t last_seq;
  std::span<const Record> records;
};

class Spool : public SiteWatcher {
 public:
  // Throws std::system_error.
  explicit Spool(const SpoolOptions& options);
  ~Spool() override;
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  // From any thread; waits for no disk.
  void note(NoteScope scope, uint64_t key, std::string_view json) noexcept;
  // Under the mutex of the string table.
  void site_added(uint32_t code, SiteCategory category, std::string_view name) noexcept override;

  // The rest under the recorder's mutex.

  // The file that a thread's ring is to lie in, behind a header; nullptr where there can be none.
  std::unique_ptr<MappedFile> make_ring_file(int32_t track, int64_t tid, std::string_view name,
                                             size_t capacity, size_t block_bytes) noexcept;
  // Before the rings are read.
  void begin_round() noexcept;
  // Before the records are taken from their ring.
  void add(const RecordBatch& batch) noexcept;
  // Before what lies in a file of its own is released there.
  void add(const TakenObservations& taken) noexcept;
  // Behind a batch: the newest step that any record so far belongs to.
  void saw_step(int64_t step) noexcept { newest_step_ = std::max(newest_step_, step); }
  void add(std::span<const ClockSample> samples) noexcept;
  void add(LossesFrame losses) noexcept;

  // What could not be written.
  uint64_t frames_lost() const noexcept { return lost_.load(std::memory_order_relaxed); }

  // Held over a fork.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }
  // In a forked child, which is not what is recorded: from now on this does nothing.
  void abandon() noexcept { is_abandoned_ = true; }

 private:
  // Of a segment, those that are told again at its beginning.
  static constexpr size_t kNotesShare = 4;
  static constexpr size_t kNoteBytes = 64;  // of one, besides its text: in memory or in a frame
  static constexpr size_t kSamplesRetold = 32;
  static constexpr size_t kObservationsTogether = 64;  // in one write

  void write(std::span<const std::byte> frames) noexcept;
  bool begin_segment() noexcept;
  void count_lost() noexcept { lost_.fetch_add(1, std::memory_order_relaxed); }

  const std::string folder_;
  const size_t most_note_bytes_;
  bool is_abandoned_ = false;      // written by a forked child's only thread
  std::atomic<uint64_t> lost_{0};  // frames; a statistic
  AppendedFile sites_;
  SpoolSegments segments_;
  FrameText frames_;       // being put together
  FrameText round_notes_;  // those whose records may still come, in this round
  int64_t newest_step_ = -1;
  std::deque<ClockSample> samples_;  // the last ones
  LossesFrame losses_{};

  std::mutex mutex_;  // guards what follows; held for no longer than a note takes to copy
  SpoolJournal journal_;
  std::map<uint64_t, std::string> open_notes_;
  size_t open_note_bytes_ = 0;
};

}  // namespace pertoken
