// Reads the records that kernels leave in a ring of tagged words (tagged_words.h), in the order of
// their numbers, without a sync. One thread; the drain's. A record is given once and whole, or it
// is counted as lost: overwritten before it was read, or never completed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/tagged_words.h"

namespace pertoken::cuda {

class TaggedReader {
 public:
  // Each record begins with as many words; `words_of` says from them how many it has in all.
  using WordsOf = size_t (*)(std::span<const uint64_t> header) noexcept;
  TaggedReader(const DeviceRing& ring, size_t header_words, WordsOf words_of);

  // The contents of the next record's words, valid until the next call; empty where there is none
  // yet. Call it until then, every now and then: a reader that is late by 32,767 rounds of the ring
  // no longer knows by how much.
  std::span<const uint64_t> take() noexcept;

  uint64_t taken() const noexcept { return taken_; }
  uint64_t lost() const noexcept { return lost_; }

 private:
  enum class Age : uint8_t { kMissing, kThere, kOverwritten };
  struct Found {
    Age age;
    uint64_t laps;  // by which it was overwritten
  };

  Found read(uint64_t index, size_t from, size_t to) noexcept;
  Found read_record(size_t& words) noexcept;
  bool is_followed() noexcept;
  void skip_to(uint64_t index) noexcept;

  DeviceRing ring_;
  size_t header_words_;
  WordsOf words_of_;
  std::vector<uint64_t> contents_;
  uint64_t next_ = 0;
  uint64_t taken_ = 0;
  uint64_t lost_ = 0;
  int waited_ = 0;
};

}  // namespace pertoken::cuda
