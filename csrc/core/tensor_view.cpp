#include "core/tensor_view.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace pertoken {
namespace {

template <size_t Bytes>
void copy_strided(std::byte* to, const std::byte* from, int64_t stride, size_t count) noexcept {
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(to, from, Bytes);
    to += Bytes;
    from += stride;
  }
}

}  // namespace

TensorView slice_of(TensorView view, size_t dim, int64_t begin, int64_t end) noexcept {
  view.data += begin * view.strides_bytes[dim];
  view.shape[dim] = end - begin;
  return view;
}

TensorBlocks::TensorBlocks(const TensorView& view)
    : value_bytes_(static_cast<size_t>(bytes_of(view.format))), at_(view.data) {
  struct Dim {
    int64_t size;
    int64_t stride;
  };
  std::array<Dim, kMaxDims> dims{};
  size_t kept = 0;
  const auto last = static_cast<size_t>(view.dims);
  const bool is_empty = std::find(view.shape.begin(), view.shape.begin() + view.dims, 0) !=
                        view.shape.begin() + view.dims;
  for (size_t i = 0; i < last; ++i) {
    int64_t size = view.shape[i];
    int64_t stride = view.strides_bytes[i];
    if (size < 0) throw std::invalid_argument("a tensor's sizes must not be negative");
    if (size == 1 || is_empty) continue;
    uint64_t& product = stride == 0 ? repeats_ : left_;
    if (__builtin_mul_overflow(product, static_cast<uint64_t>(size), &product)) {
      throw std::overflow_error("a tensor's values must be countable in 64 bits");
    }
    if (stride == 0) continue;
    if (stride < 0) {
      at_ += stride * (size - 1);
      stride = -stride;
    }
    // By descending stride, equal ones as they come; without the memory that a library's sort
    // takes.
    size_t place = kept++;
    for (; place > 0 && dims[place - 1].stride < stride; --place) dims[place] = dims[place - 1];
    dims[place] = {size, stride};
  }
  uint64_t all = 0;
  if (__builtin_mul_overflow(left_, repeats_, &all)) {
    throw std::overflow_error("a tensor's values must be countable in 64 bits");
  }
  if (is_empty) left_ = 0;
  for (size_t i = 0; i < kept; ++i) {
    // One with the dimension outside it, where that goes on exactly where this one ends.
    if (dims_ > 0) {
      const auto outer = static_cast<size_t>(dims_ - 1);
      if (strides_[outer] == dims[i].stride * dims[i].size) {
        shape_[outer] *= dims[i].size;
        strides_[outer] = dims[i].stride;
        continue;
      }
    }
    shape_[static_cast<size_t>(dims_)] = dims[i].size;
    strides_[static_cast<size_t>(dims_)] = dims[i].stride;
    ++dims_;
  }
  if (dims_ == 0) {
    dims_ = 1;
    shape_[0] = 1;
    strides_[0] = static_cast<int64_t>(value_bytes_);
  }
}

TensorBlocks::Block TensorBlocks::next(std::byte* staging) noexcept {
  const auto inner = static_cast<size_t>(dims_ - 1);
  const size_t wanted = left_ < kBlockValues ? static_cast<size_t>(left_) : kBlockValues;
  const bool is_dense = strides_[inner] == static_cast<int64_t>(value_bytes_);
  if (is_dense && static_cast<uint64_t>(shape_[inner] - index_[inner]) >= wanted) {
    const std::byte* const values = at_;
    advance(wanted);
    return {values, wanted};
  }
  size_t copied = 0;
  while (copied < wanted) {
    const auto run = static_cast<size_t>(
        std::min<uint64_t>(static_cast<uint64_t>(shape_[inner] - index_[inner]), wanted - copied));
    copy_run(staging + copied * value_bytes_, run);
    advance(run);
    copied += run;
  }
  return {staging, wanted};
}

void TensorBlocks::copy_run(std::byte* to, size_t count) const noexcept {
  const int64_t stride = strides_[static_cast<size_t>(dims_ - 1)];
  if (stride == static_cast<int64_t>(value_bytes_)) {
    std::memcpy(to, at_, count * value_bytes_);
    return;
  }
  switch (value_bytes_) {
    case 1:
      return copy_strided<1>(to, at_, stride, count);
    case 2:
      return copy_strided<2>(to, at_, stride, count);
    case 4:
      return copy_strided<4>(to, at_, stride, count);
    default:
      return copy_strided<8>(to, at_, stride, count);
  }
}

// Past `count` values of the innermost dimension, which has as many left.
void TensorBlocks::advance(size_t count) noexcept {
  left_ -= count;
  if (left_ == 0) return;  // and `at_` stays inside the tensor
  auto dim = static_cast<size_t>(dims_ - 1);
  index_[dim] += static_cast<int64_t>(count);
  at_ += strides_[dim] * static_cast<int64_t>(count);
  while (index_[dim] == shape_[dim] && dim > 0) {
    at_ -= strides_[dim] * shape_[dim];
    index_[dim] = 0;
    --dim;
    ++index_[dim];
    at_ += strides_[dim];
  }
}

}  // namespace pertoken
