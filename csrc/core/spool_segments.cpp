#include "core/spool_segments.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "core/spool_frame.h"

namespace pertoken {

AppendedFile::AppendedFile(const std::string& path)
    : descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), path);
}

AppendedFile::~AppendedFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

AppendedFile::AppendedFile(AppendedFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), size_bytes_(other.size_bytes_) {}

AppendedFile& AppendedFile::operator=(AppendedFile&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

bool AppendedFile::append(std::span<const std::byte> bytes) noexcept {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = write(descriptor_, bytes.data() + done, bytes.size() - done);
    if (written > 0) {
      done += static_cast<size_t>(written);
    } else if (written == 0 || errno != EINTR) {
      break;
    }
  }
  if (done == bytes.size()) {
    size_bytes_ += done;
    return true;
  }
  // A part of a frame would hide all that comes after it.
  if (done > 0 && ftruncate(descriptor_, static_cast<off_t>(size_bytes_)) != 0) size_bytes_ += done;
  return false;
}

SpoolSegments::SpoolSegments(std::string folder, size_t segment_bytes, size_t most)
    : folder_(std::move(folder)), segment_bytes_(segment_bytes), most_(most), file_(begin(0, 0)) {}

void SpoolSegments::begin_next(int64_t first_step) {
  // First, so that a disk that is full has room for the next one.
  const uint64_t next = number_ + 1;
  if (next >= most_) unlink(path(next - most_).c_str());
  file_ = begin(next, first_step);
  number_ = next;
}

// None without its head, by which all in it is found.
AppendedFile SpoolSegments::begin(uint64_t number, int64_t first_step) const {
  AppendedFile file(path(number));
  FrameText head;
  head.add(FrameType::kSegment, SegmentFrame{kSpoolVersion, 0, number, first_step});
  if (!file.append(head.bytes())) {
    unlink(path(number).c_str());
    throw std::system_error(ENOSPC, std::generic_category(), path(number));
  }
  return file;
}

std::string SpoolSegments::path(uint64_t number) const {
  return folder_ + "/segment-" + std::to_string(number);
}

}  // namespace pertoken
