#include "core/crc32.h"

#include <array>

namespace pertoken {

namespace {

constexpr size_t kSlices = 8;  // bytes that one round takes
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

// Entry i of table k: the checksum of the byte i with k bytes of zero behind it. Made when the
// library is loaded, in some microseconds: a table in the file would be 8 KB that no archive can
// compress.
Tables make_tables() noexcept {
  Tables made{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t remainder = i;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? 0xEDB88320u : 0u);
    }
    made[0][i] = remainder;
  }
  for (size_t k = 1; k < kSlices; ++k) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t before = made[k - 1][i];
      made[k][i] = (before >> 8) ^ made[0][before & 0xFF];
    }
  }
  return made;
}

const Tables tables = make_tables();

uint32_t at(std::span<const std::byte> bytes, size_t i) noexcept {
  return std::to_integer<uint32_t>(bytes[i]);
}

}  // namespace

uint32_t crc32(std::span<const std::byte> bytes, uint32_t earlier) noexcept {
  uint32_t crc = ~earlier;
  for (; bytes.size() >= kSlices; bytes = bytes.subspan(kSlices)) {
    uint32_t next = 0;
    for (size_t i = 0; i < kSlices; ++i) {
      const uint32_t byte = i < 4 ? at(bytes, i) ^ ((crc >> (8 * i)) & 0xFF) : at(bytes, i);
      next ^= tables[kSlices - 1 - i][byte];
    }
    crc = next;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    crc = (crc >> 8) ^ tables[0][(crc ^ at(bytes, i)) & 0xFF];
  }
  return ~crc;
}

}  // namespace pertoken
