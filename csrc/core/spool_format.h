// How a spool lies on the disk, for python/pertoken/spool_reader.py to read when the process is
// gone. A folder holds:
//
//   ring-N      a mapped file for each thread: RingFileHeader, then the block of its SpscRing
//   journal     a mapped file: JournalHeader, then notes that are not in a segment yet
//   observations  likewise, of observations; only where there was one
//   segment-N   what was taken from both, appended; the oldest segments are deleted, whole
//   sites       the names of sites, appended
//
// Segments, sites and the journal's contents are frames: a header, then the payload. A frame whose
// checksum does not hold was torn by the end of the process, and nothing behind it counts. All
// numbers are little-endian, as of every machine this runs on.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace pertoken {

static_assert(std::endian::native == std::endian::little);

inline constexpr uint32_t kSpoolVersion = 1;
inline constexpr uint32_t kFrameMagic = 0x4D465450;             // "PTFM"
inline constexpr uint64_t kRingMagic = 0x31474E49'524B5450;     // "PTKRING1"
inline constexpr uint64_t kJournalMagic = 0x314C4E52'4A4B5450;  // "PTKJRNL1"
inline constexpr size_t kFrameRecords = 2048;                   // at most, in one frame
inline constexpr size_t kRingFileHeaderBytes = 4096;            // in front of the block
inline constexpr size_t kJournalHeaderBytes = 64;               // in front of the frames
inline constexpr size_t kJournalBytes = size_t{1} << 20;        // all together
inline constexpr size_t kObservationJournalBytes = size_t{4} << 20;
// Of what a sample stands for: a damaged spool may say anything.
inline constexpr double kLargestWeight = 1e12;

enum class FrameType : uint8_t {
  kSegment = 1,  // SegmentFrame: the first of each segment
  kRecords = 2,  // RecordsFrame, then its records
  kNote = 3,     // JSON, from spool_notes.py
  kRound = 4,    // empty: the notes before it were queued before the records behind it were taken
  kClock = 5,    // ClockSamples
  kLosses = 6,   // LossesFrame, of the whole recording so far
  kSite = 7,     // SiteFrame, then the name in UTF-8
  kObservation = 8,  // ObservationFrame, then its buckets, packed
};

struct FrameHeader {
  uint32_t magic;
  uint32_t crc;  // of the rest of the header and the payload
  uint32_t type;
  uint32_t payload_bytes;
};
static_assert(sizeof(FrameHeader) == 16);

struct SegmentFrame {
  uint32_t version;
  uint32_t zero;
  uint64_t number;
  int64_t first_step;  // of earlier ones, the segments before may hold a part
};
static_assert(sizeof(SegmentFrame) == 24);

struct RecordsFrame {
  int32_t track;
  uint32_t count;
  uint64_t first_index;  // the place of the first record among all of the track's
  int64_t last_step;     // what the step of the first record is to be widened against
  int64_t last_seq;      // and its span, -1 none
  int64_t tid;
  char name[16];  // of the thread, zeros behind it
};
static_assert(sizeof(RecordsFrame) == 56);

struct LossesFrame {
  uint64_t records_dropped;
  uint64_t recording_faults;
  uint64_t collector_faults;
  uint64_t frames_lost;  // what the spool itself could not write
};
static_assert(sizeof(LossesFrame) == 32);

struct ObservationFrame {
  uint64_t number;    // its place among all, those that were dropped included
  int64_t last_step;  // what its step is to be widened against
  uint32_t step;
  uint32_t site;
  int32_t row;
  uint8_t kind;
  uint8_t format;
  int8_t scale;
  uint8_t zero;
  double weight;
  uint64_t zeros;
  uint64_t nans;
  uint64_t pos_infs;
  uint64_t neg_infs;
  double sum;
  double sum_sq;
  double min;
  double max;
};
static_assert(sizeof(ObservationFrame) == 104);

struct SiteFrame {
  uint32_t code;
  uint32_t category;
};
static_assert(sizeof(SiteFrame) == 8);

struct RingFileHeader {
  uint64_t magic;
  uint32_t version;
  int32_t track;
  uint64_t capacity;  // in records
  int64_t tid;
  char name[16];
};
static_assert(sizeof(RingFileHeader) == 48);

// `extent`: begin << 32 | end, in bytes from the end of this header.
struct JournalHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t zero;
  uint64_t extent;
};
static_assert(sizeof(JournalHeader) == 24);

}  // namespace pertoken
