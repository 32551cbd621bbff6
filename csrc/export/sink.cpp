#include "export/sink.h"

#include <unistd.h>

#include <cerrno>

namespace pertoken::exporting {

bool FileDescriptorSink::write(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t written = ::write(fd_, data, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      error_ = errno;
      return false;
    }
    data += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

bool OutputBuffer::flush() {
  const auto size = static_cast<size_t>(cursor_ - bytes_.get());
  cursor_ = bytes_.get();
  if (size > 0 && ok_) ok_ = sink_.write(bytes_.get(), size);
  return ok_;
}

void OutputBuffer::append_over_end(std::string_view text) {
  while (!text.empty()) {
    if (cursor_ == end_ && !flush()) return;
    const std::string_view part = text.substr(0, static_cast<size_t>(end_ - cursor_));
    std::memcpy(cursor_, part.data(), part.size());
    cursor_ += part.size();
    text.remove_prefix(part.size());
  }
}

}  // namespace pertoken::exporting
