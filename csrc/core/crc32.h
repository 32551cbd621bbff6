// The checksum of zip and of Ethernet (CRC-32, reflected polynomial 0xEDB88320), as zlib's crc32().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pertoken {

// Of the bytes that `earlier` is the checksum of, followed by these.
uint32_t crc32(std::span<const std::byte> bytes, uint32_t earlier = 0) noexcept;

}  // namespace pertoken
