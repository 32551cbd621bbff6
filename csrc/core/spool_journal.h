// Notes and observations on their way from the threads that make them to the segments of a spool:
// frames in a mapped file, so that the end of the process loses none, and no thread of the model's
// waits for a disk.
// Under its owner's mutex. See spool_format.h.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "core/mapped_file.h"

namespace pertoken {

class SpoolJournal {
 public:
  // Throws std::system_error.
  SpoolJournal(std::string path, size_t size_bytes);

  // False when there is no room.
  bool append(std::span<const std::byte> frame) noexcept;
  // What was appended and not released. Stays where it is until release().
  std::span<const std::byte> waiting() const noexcept;
  // Gives back the first of what waiting() returned.
  void release(size_t size_bytes) noexcept;

 private:
  void publish() noexcept;

  MappedFile file_;
  std::span<std::byte> room_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

}  // namespace pertoken
