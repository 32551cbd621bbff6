#include "cuda/tagged_reader.h"

#include <algorithm>

namespace pertoken::cuda {
namespace {

// How many records may be under way at once that were numbered after one that is not there yet.
constexpr uint64_t kLookAhead = 64;
// Calls that found a record missing, though a later one was there, before it is given up: its
// kernel was cut off. A kernel takes microseconds from the number to the last word.
constexpr int kPatience = 8;

}  // namespace

TaggedReader::TaggedReader(const DeviceRing& ring, size_t header_words, WordsOf words_of)
    : ring_(ring), header_words_(header_words), words_of_(words_of), contents_(ring.words_a_slot) {}

// Words [from, to) of a record into contents_. The loads pair with the stores of store_word().
TaggedReader::Found TaggedReader::read(uint64_t index, size_t from, size_t to) noexcept {
  uint64_t* const slot = slot_at(ring_, index);
  const uint64_t wanted = tag_of(index, ring_.capacity_log2);
  Found found{Age::kThere, 0};
  for (size_t i = from; i < to; ++i) {
    const uint64_t word = std::atomic_ref<uint64_t>(slot[i]).load(std::memory_order_relaxed);
    const uint64_t tag = word >> kContentBits;
    const uint64_t laps = (tag + kTags - wanted) % kTags;
    if (tag != 0 && laps != 0 && laps < kTags / 2) {
      return {Age::kOverwritten, std::max(laps, found.laps)};
    }
    if (tag != wanted) found.age = Age::kMissing;
    contents_[i] = word & kContentMask;
  }
  return found;
}

TaggedReader::Found TaggedReader::read_record(size_t& words) noexcept {
  const Found header = read(next_, 0, header_words_);
  if (header.age != Age::kThere) return header;
  words = std::clamp(words_of_({contents_.data(), header_words_}), header_words_, contents_.size());
  return read(next_, header_words_, words);
}

// Whether a record after the next one is there, so that the next one should be.
bool TaggedReader::is_followed() noexcept {
  const uint64_t capacity = uint64_t{1} << ring_.capacity_log2;
  for (uint64_t ahead = 1; ahead <= std::min(kLookAhead, capacity - 1); ++ahead) {
    if (read(next_ + ahead, 0, 1).age != Age::kMissing) return true;
  }
  return false;
}

void TaggedReader::skip_to(uint64_t index) noexcept {
  lost_ += index - next_;
  next_ = index;
  waited_ = 0;
}

std::span<const uint64_t> TaggedReader::take() noexcept {
  const uint64_t capacity = uint64_t{1} << ring_.capacity_log2;
  while (true) {
    size_t words = 0;
    const Found found = read_record(words);
    if (found.age == Age::kThere) {
      ++next_;
      ++taken_;
      waited_ = 0;
      return {contents_.data(), words};
    }
    if (found.age == Age::kOverwritten) {
      // Of the record that stands here now, those a round before it and more are gone.
      skip_to(next_ + (found.laps - 1) * capacity + 1);
      continue;
    }
    if (!is_followed()) return {};
    if (++waited_ < kPatience) return {};
    skip_to(next_ + 1);
  }
}

}  // namespace pertoken::cuda
