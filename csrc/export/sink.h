// Where exported bytes go, and the one buffer in front of it. Used by the exporters, on the thread
// that exports; no Python here.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>

namespace pertoken::exporting {

class Sink {
 public:
  virtual ~Sink() = default;
  // Takes all `size` bytes, or returns false; after that it is not called again.
  virtual bool write(const char* data, size_t size) = 0;
};

// Writes to a file descriptor that it does not own.
class FileDescriptorSink final : public Sink {
 public:
  explicit FileDescriptorSink(int fd) : fd_(fd) {}
  bool write(const char* data, size_t size) override;
  // The errno of the write that failed, 0 when none did.
  int error() const { return error_; }

 private:
  int fd_;
  int error_ = 0;
};

// Collects small pieces and hands the sink large ones. Once the sink refuses, what follows is
// discarded and ok() stays false, so that callers need to look only now and then.
class OutputBuffer {
 public:
  static constexpr size_t kCapacityBytes = size_t{1} << 20;

  explicit OutputBuffer(Sink& sink)
      : sink_(sink),
        bytes_(std::make_unique<char[]>(kCapacityBytes)),
        cursor_(bytes_.get()),
        end_(bytes_.get() + kCapacityBytes) {}

  // Room for `size` bytes, at most kCapacityBytes; commit() says how much of it was used.
  char* reserve(size_t size) {
    if (static_cast<size_t>(end_ - cursor_) < size) flush();
    return cursor_;
  }
  void commit(char* end) { cursor_ = end; }

  void append(std::string_view text) {
    if (static_cast<size_t>(end_ - cursor_) < text.size()) return append_over_end(text);
    std::memcpy(cursor_, text.data(), text.size());
    cursor_ += text.size();
  }

  bool flush();
  bool ok() const { return ok_; }

 private:
  void append_over_end(std::string_view text);

  Sink& sink_;
  std::unique_ptr<char[]> bytes_;
  char* cursor_;
  char* end_;
  bool ok_ = true;
};

}  // namespace pertoken::exporting
