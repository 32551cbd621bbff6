// The segments of a spool: files that frames are appended to, of which the oldest are deleted.
// Written by the collector, under the recorder's mutex. What write() has taken is the kernel's, and
// so outlives the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace pertoken {

// A file that frames are appended to, whole ones as long as the process lives.
class AppendedFile {
 public:
  // Throws std::system_error, also where the path exists.
  explicit AppendedFile(const std::string& path);
  ~AppendedFile();
  AppendedFile(AppendedFile&& other) noexcept;
  AppendedFile& operator=(AppendedFile&& other) noexcept;

  // False when the system refuses; then nothing of it is in the file.
  bool append(std::span<const std::byte> bytes) noexcept;
  size_t size_bytes() const noexcept { return size_bytes_; }

 private:
  int descriptor_;
  size_t size_bytes_ = 0;
};

class SpoolSegments {
 public:
  // `segment_bytes`: how large each becomes, about; `most`: how many there are.
  // Throws std::system_error.
  SpoolSegments(std::string folder, size_t segment_bytes, size_t most);

  bool is_full() const noexcept { return file_.size_bytes() >= segment_bytes_; }
  // Goes on in a new segment, and deletes the oldest. `first_step`: no record of this step or a
  // later one was appended yet. Throws std::system_error; then it goes on in the old one, and the
  // oldest is gone all the same.
  void begin_next(int64_t first_step);
  bool append(std::span<const std::byte> frames) noexcept { return file_.append(frames); }

 private:
  std::string path(uint64_t number) const;
  AppendedFile begin(uint64_t number, int64_t first_step) const;

  const std::string folder_;
  const size_t segment_bytes_;
  const size_t most_;
  uint64_t number_ = 0;
  AppendedFile file_;
};

}  // namespace pertoken
