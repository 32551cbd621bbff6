#include "core/packed_buckets.h"

#include <cstddef>

namespace pertoken {
namespace {

void put_number(std::vector<uint8_t>& bytes, uint64_t number) {
  while (number >= 0x80) {
    bytes.push_back(static_cast<uint8_t>(number | 0x80));
    number >>= 7;
  }
  bytes.push_back(static_cast<uint8_t>(number));
}

bool take_number(std::span<const uint8_t>& bytes, uint64_t& number) {
  number = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (bytes.empty()) return false;
    const uint8_t byte = bytes.front();
    bytes = bytes.subspan(1);
    number |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

}  // namespace

void pack(const Buckets& side, std::vector<uint8_t>& bytes) {
  // Of either sign, as an unsigned number that is small where it is.
  const auto offset = static_cast<uint32_t>(side.offset);
  put_number(bytes, offset << 1 ^ (side.offset < 0 ? ~uint32_t{0} : 0));
  put_number(bytes, side.counts.size());
  for (const uint64_t n : side.counts) put_number(bytes, n);
}

bool unpack(std::span<const uint8_t>& bytes, Buckets& side) {
  uint64_t folded = 0;
  uint64_t size = 0;
  if (!take_number(bytes, folded) || !take_number(bytes, size)) return false;
  if (folded > UINT32_MAX || size > bytes.size()) return false;
  const auto low = static_cast<uint32_t>(folded);
  side.offset = static_cast<int32_t>(low >> 1 ^ -(low & 1));
  side.counts.resize(static_cast<size_t>(size));
  for (uint64_t& n : side.counts) {
    if (!take_number(bytes, n)) return false;
  }
  return true;
}

}  // namespace pertoken
