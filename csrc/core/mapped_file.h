// A file of fixed size whose contents are memory: what is written there outlives the process, also
// one that is killed, since the kernel has it. Not what a machine loses that goes down.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace pertoken {

class MappedFile {
 public:
  // A new file, filled with zeros, whose room on the disk is taken beforehand: writing into it
  // cannot fail. Throws std::system_error, also where the path exists.
  MappedFile(std::string path, size_t size_bytes);
  ~MappedFile();  // the file stays
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::byte* data() const noexcept { return data_; }
  size_t size_bytes() const noexcept { return size_bytes_; }
  // Takes the file out of its folder.
  void remove() noexcept;
  // In a forked child: the same addresses, empty, and no longer those of the parent's file. False
  // when the system refuses.
  bool become_private() noexcept;

 private:
  const std::string path_;
  const size_t size_bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace pertoken
