// A tensor in host memory, as others describe it, and its values in blocks that lie side by side.
// Any thread; the memory must stay as it is meanwhile, or the values read are some of before and
// some of after.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/float_bits.h"

namespace pertoken {

inline constexpr int kMaxDims = 64;

struct TensorView {
  const std::byte* data = nullptr;  // of the value whose indices are all 0; need not be aligned
  FloatFormat format = FloatFormat::kFloat32;
  int dims = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> strides_bytes{};  // of any sign, or 0
};

// The part of it that has `begin` up to before `end` as its indices of a dimension.
TensorView slice_of(TensorView view, size_t dim, int64_t begin, int64_t end) noexcept;

// Values of a block; all blocks but the last have as many.
inline constexpr size_t kBlockValues = 4096;

// Walks through a tensor in the order of its memory, whatever the order of its dimensions: neither
// counts nor moments depend on it, and so the same memory gives the same sums in every view.
class TensorBlocks {
 public:
  // Throws std::invalid_argument for a negative size, std::overflow_error for more values than 64
  // bits can count.
  explicit TensorBlocks(const TensorView& view);

  // How often each value that next() gives stands in the tensor: more than once where a stride is
  // 0.
  uint64_t repeats() const noexcept { return repeats_; }
  uint64_t values_left() const noexcept { return left_; }

  // The fewest dimensions that the memory has, the outermost first, none of stride 0 or below; and
  // where it begins.
  std::span<const int64_t> shape() const noexcept {
    return {shape_.data(), static_cast<size_t>(dims_)};
  }
  std::span<const int64_t> strides_bytes() const noexcept {
    return {strides_.data(), static_cast<size_t>(dims_)};
  }
  const std::byte* first() const noexcept { return at_; }

  // Up to kBlockValues values and their number, 0 at the end: in place where they lie side by side,
  // else copied to `staging`, which has room for so many.
  struct Block {
    const std::byte* values;
    size_t count;
  };
  Block next(std::byte* staging) noexcept;

 private:
  void copy_run(std::byte* to, size_t count) const noexcept;
  void advance(size_t count) noexcept;

  size_t value_bytes_;
  uint64_t repeats_ = 1;
  uint64_t left_ = 1;
  // The outermost first; of the innermost, index_[dims_ - 1] values were given.
  int dims_ = 0;
  std::array<int64_t, kMaxDims> shape_{};
  std::array<int64_t, kMaxDims> strides_{};
  std::array<int64_t, kMaxDims> index_{};
  const std::byte* at_;
};

}  // namespace pertoken
