// Frames of a spool as they are put together in memory: see spool_format.h.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/crc32.h"
#include "core/spool_format.h"

namespace pertoken {

// One frame or several, one behind the other. Throws std::bad_alloc.
class FrameText {
 public:
  // A frame of plain data, followed by bytes.
  template <typename Head>
  void add(FrameType type, const Head& head, std::span<const std::byte> rest = {}) {
    static_assert(std::is_trivially_copyable_v<Head>);
    add(type, std::as_bytes(std::span(&head, 1)), rest);
  }
  void add(FrameType type, std::span<const std::byte> head, std::span<const std::byte> rest) {
    const auto payload_bytes = static_cast<uint32_t>(head.size() + rest.size());
    FrameHeader header{kFrameMagic, 0, static_cast<uint32_t>(type), payload_bytes};
    const auto covered = std::as_bytes(std::span(&header, 1)).subspan(offsetof(FrameHeader, type));
    header.crc = crc32(rest, crc32(head, crc32(covered)));
    append(std::as_bytes(std::span(&header, 1)));
    append(head);
    append(rest);
  }
  void append(std::span<const std::byte> frames) {
    bytes_.insert(bytes_.end(), frames.begin(), frames.end());
  }

  std::span<const std::byte> bytes() const noexcept { return bytes_; }
  void clear() noexcept { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace pertoken
