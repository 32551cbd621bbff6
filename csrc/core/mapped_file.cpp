#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace pertoken {

MappedFile::MappedFile(std::string path, size_t size_bytes)
    : path_(std::move(path)), size_bytes_(size_bytes) {
  const int descriptor = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor < 0) throw std::system_error(errno, std::generic_category(), path_);
  const int refused = posix_fallocate(descriptor, 0, static_cast<off_t>(size_bytes_));
  void* const mapped =
      refused != 0 ? MAP_FAILED
                   : mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  const int reason = refused != 0 ? refused : errno;
  close(descriptor);
  if (mapped == MAP_FAILED) {
    remove();
    throw std::system_error(reason, std::generic_category(), path_);
  }
  data_ = static_cast<std::byte*>(mapped);
}

MappedFile::~MappedFile() { munmap(data_, size_bytes_); }

void MappedFile::remove() noexcept { unlink(path_.c_str()); }

bool MappedFile::become_private() noexcept {
  constexpr int kAnew = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  return mmap(data_, size_bytes_, PROT_READ | PROT_WRITE, kAnew, -1, 0) != MAP_FAILED;
}

}  // namespace pertoken
