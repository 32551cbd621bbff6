// Tensors for the tests of the kernels: values of every kind, as raw bytes of a format.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/tensor_view.h"

namespace pertoken::testing {

inline std::vector<std::byte> random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// Raw bits of one type, as the bytes of a tensor.
template <typename Bits>
std::vector<std::byte> bytes_of_all(const std::vector<Bits>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(Bits));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::vector<std::byte> normal_float32(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return bytes_of_all(values);
}

// Bits in which a bug would show: each boundary of an octave and what is beside it, at exponents at
// both ends and in the middle, with zeros, infinities, NaNs and subnormals; in an order in which
// each vector holds several kinds.
inline std::vector<std::byte> adversarial_float32(size_t count, uint64_t seed) {
  std::vector<uint32_t> kinds = {0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000,
                                 0xffc00000, 0x7f800001, 0x7fffffff, 0x00000001, 0x80000001,
                                 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x3f800000};
  for (const uint32_t exponent : {0U, 1U, 100U, 127U, 128U, 254U}) {
    for (size_t j = 0; j < 256; j += 32) {
      const auto boundary = static_cast<uint32_t>(kOctave.boundary[j] >> 29);
      for (const uint32_t beside : {0U, 1U}) {
        kinds.push_back((exponent << 23) + boundary + beside);
        kinds.push_back(kFloat32Sign + (exponent << 23) + boundary + beside);
      }
    }
  }
  std::mt19937_64 random(seed);
  std::vector<uint32_t> values(count);
  for (uint32_t& value : values) value = kinds[random() % kinds.size()];
  return bytes_of_all(values);
}

inline TensorView view_of(const std::byte* data, FloatFormat format, size_t count) {
  TensorView view;
  view.data = data;
  view.format = format;
  view.dims = 1;
  view.shape[0] = static_cast<int64_t>(count);
  view.strides_bytes[0] = bytes_of(format);
  return view;
}

inline TensorView view_of(const std::vector<std::byte>& bytes, FloatFormat format) {
  return view_of(bytes.data(), format, bytes.size() / static_cast<size_t>(bytes_of(format)));
}

}  // namespace pertoken::testing
