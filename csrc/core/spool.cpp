#include "core/spool.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/spooled_observation.h"

namespace pertoken {

namespace {

template <size_t kSize>
void copy_name(std::string_view name, char (&to)[kSize]) {
  std::fill_n(to, kSize, '\0');
  std::copy_n(name.begin(), std::min(name.size(), kSize), to);
}

}  // namespace

Spool::Spool(const SpoolOptions& options)
    : folder_(options.folder),
      most_note_bytes_(options.segment_bytes / kNotesShare),
      sites_(options.folder + "/sites"),
      segments_(options.folder, options.segment_bytes, options.segments),
      journal_(options.folder + "/journal", kJournalBytes) {
  watch_sites(*this);  // tells of those that there are, too
}

Spool::~Spool() { unwatch_sites(*this); }

void Spool::note(NoteScope scope, uint64_t key, std::string_view json) noexcept {
  if (is_abandoned_) return;
  try {
    FrameText frame;
    frame.add(FrameType::kNote, bytes_of(json), {});
    const std::lock_guard guard(mutex_);
    if (!journal_.append(frame.bytes())) count_lost();
    if (scope == NoteScope::kOnce) return;
    if (const auto known = open_notes_.find(key); known != open_notes_.end()) {
      open_note_bytes_ -= kNoteBytes + known->second.size();
      open_notes_.erase(known);
    }
    const size_t size = kNoteBytes + json.size();
    if (scope == NoteScope::kCloses || open_note_bytes_ + size > most_note_bytes_) return;
    open_notes_.emplace(key, json);
    open_note_bytes_ += size;
  } catch (...) {
    count_lost();
  }
}

void Spool::site_added(uint32_t code, SiteCategory category, std::string_view name) noexcept {
  try {
    FrameText frame;
    frame.add(FrameType::kSite, SiteFrame{code, static_cast<uint32_t>(category)}, bytes_of(name));
    if (!sites_.append(frame.bytes())) count_lost();
  } catch (...) {
    count_lost();
  }
}

std::unique_ptr<MappedFile> Spool::make_ring_file(int32_t track, int64_t tid, std::string_view name,
                                                  size_t capacity, size_t block_bytes) noexcept {
  if (is_abandoned_) return nullptr;
  try {
    auto file = std::make_unique<MappedFile>(folder_ + "/ring-" + std::to_string(track),
                                             kRingFileHeaderBytes + block_bytes);
    RingFileHeader header{kRingMagic, kSpoolVersion, track, capacity, tid, {}};
    copy_name(name, header.name);
    std::memcpy(file->data(), &header, sizeof(header));
    return file;
  } catch (...) {
    count_lost();
    return nullptr;
  }
}

void Spool::begin_round() noexcept {
  if (is_abandoned_) return;
  try {
    frames_.clear();
    {
      const std::lock_guard guard(mutex_);
      frames_.append(journal_.waiting());
    }
    const size_t taken = frames_.bytes().size();
    round_notes_.clear();
    if (taken == 0) return;
    round_notes_.append(frames_.bytes());
    frames_.add(FrameType::kRound, std::span<const std::byte>{}, {});
    write(frames_.bytes());
    // Only now: a note that is told twice does no harm, and one that is lost does.
    const std::lock_guard guard(mutex_);
    journal_.release(taken);
  } catch (...) {
    count_lost();
  }
}

void Spool::add(const RecordBatch& batch) noexcept {
  if (is_abandoned_) return;
  RecordsFrame head{batch.track,
                    static_cast<uint32_t>(batch.records.size()),
                    batch.first_index,
                    batch.last_step,
                    batch.last_seq,
                    batch.tid,
                    {}};
  copy_name(batch.thread_name, head.name);
  try {
    frames_.clear();
    frames_.add(FrameType::kRecords, head, std::as_bytes(batch.records));
    write(frames_.bytes());
  } catch (...) {
    count_lost();
  }
}

void Spool::add(const TakenObservations& taken) noexcept {
  if (is_abandoned_) return;
  std::span<const std::byte> left = taken.frames;
  int64_t newest_step = kNoStep;
  try {
    for (size_t i = 0; i < taken.observations.size(); ++i) {
      if (i % kObservationsTogether == 0) frames_.clear();
      newest_step = std::max(newest_step, widened(taken.observations[i], taken.last_step));
      if (i < taken.framed) {
        FrameHeader header;
        std::memcpy(&header, left.data(), sizeof(header));
        const size_t size = sizeof(header) + header.payload_bytes;
        frames_.append(left.first(size));
        left = left.subspan(size);
      } else {
        add_observation(frames_, taken.first_number + i, taken.last_step, taken.observations[i]);
      }
      const bool is_last = i + 1 == taken.observations.size();
      if (!is_last && (i + 1) % kObservationsTogether != 0) continue;
      write(frames_.bytes());
      saw_step(newest_step);
    }
  } catch (...) {
    count_lost();
  }
}

void Spool::add(std::span<const ClockSample> samples) noexcept {
  if (is_abandoned_ || samples.empty()) return;
  try {
    samples_.insert(samples_.end(), samples.begin(), samples.end());
    while (samples_.size() > kSamplesRetold) samples_.pop_front();
    frames_.clear();
    frames_.add(FrameType::kClock, std::as_bytes(samples), {});
    write(frames_.bytes());
  } catch (...) {
    count_lost();
  }
}

void Spool::add(LossesFrame losses) noexcept {
  if (is_abandoned_) return;
  losses.frames_lost = frames_lost();
  if (std::memcmp(&losses, &losses_, sizeof(losses)) == 0) return;
  losses_ = losses;
  try {
    frames_.clear();
    frames_.add(FrameType::kLosses, losses_);
    write(frames_.bytes());
  } catch (...) {
    count_lost();
  }
}

void Spool::write(std::span<const std::byte> frames) noexcept {
  // No segment grows past its bound, even where none can follow it.
  const bool has_room = !segments_.is_full() || begin_segment();
  if (!has_room || !segments_.append(frames)) count_lost();
}

// What holds for all that follows is told again, since the segment that told it will be deleted.
bool Spool::begin_segment() noexcept {
  try {
    segments_.begin_next(newest_step_ + 1);
    FrameText again;
    const std::vector<ClockSample> samples(samples_.begin(), samples_.end());
    again.add(FrameType::kClock, std::as_bytes(std::span(samples)), {});
    again.add(FrameType::kLosses, losses_);
    {
      const std::lock_guard guard(mutex_);
      for (const auto& [key, json] : open_notes_) {
        again.add(FrameType::kNote, bytes_of(json), {});
      }
    }
    again.append(round_notes_.bytes());
    if (!segments_.append(again.bytes())) count_lost();
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace pertoken
