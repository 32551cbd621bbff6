// Views of every layout, against the values picked one by one by their indices.
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "core/float_value.h"
#include "core/tensor_stats.h"
#include "tensor_values.h"

namespace {

using namespace pertoken::testing;
using pertoken::ExpHistogram;
using pertoken::FloatFormat;
using pertoken::histogram_of;
using pertoken::reference_histogram_of;
using pertoken::TensorView;

// By recursion over the indices, in the order of the dimensions.
void record_all(const TensorView& view, size_t dim, int64_t offset, ExpHistogram& histogram) {
  if (dim == static_cast<size_t>(view.dims)) {
    histogram.record(pertoken::value_at(view.data + offset, view.format));
    return;
  }
  for (int64_t i = 0; i < view.shape[dim]; ++i) {
    record_all(view, dim + 1, offset + i * view.strides_bytes[dim], histogram);
  }
}

void check_view(const TensorView& view) {
  ExpHistogram expected;
  record_all(view, 0, 0, expected);
  for (const ExpHistogram& actual : {histogram_of(view, 3), reference_histogram_of(view, 3)}) {
    CHECK(actual.positive() == expected.positive());
    CHECK(actual.negative() == expected.negative());
    CHECK_EQ(actual.count(), expected.count());
    CHECK_EQ(actual.zero_count(), expected.zero_count());
    CHECK_EQ(actual.nan_count(), expected.nan_count());
    if (expected.count() == 0) continue;
    CHECK_EQ(actual.min(), expected.min());
    CHECK_EQ(actual.max(), expected.max());
  }
}

bool is_refused(const TensorView& view) {
  try {
    histogram_of(view, 3);
  } catch (const std::exception&) {
    return true;
  }
  return false;
}

}  // namespace

// Sizes from 0, strides of both signs, 0, dense, overlapping and unaligned, in any order.
TEST(random_views) {
  const auto bytes = random_bytes(1 << 20, 1);
  std::mt19937_64 random(2);
  const auto below = [&](uint64_t n) { return static_cast<int64_t>(random() % n); };
  for (int round = 0; round < 3000; ++round) {
    TensorView view;
    view.format = static_cast<FloatFormat>(round % pertoken::kFloatFormats);
    const int64_t size = pertoken::bytes_of(view.format);
    view.dims = static_cast<int>(below(5));
    for (size_t i = 0; i < static_cast<size_t>(view.dims); ++i) {
      view.shape[i] = below(16) == 0 ? below(2) : 1 + below(i == 0 ? 60 : 9);
      const int64_t strides[] = {0,         size, -size, 2 * size, size * below(500), -below(3000),
                                 below(100)};
      view.strides_bytes[i] = strides[below(7)];
    }
    view.data = bytes.data() + (1 << 19) + below(64);
    check_view(view);
  }
}

// A contiguous block in every order of its three dimensions, each forwards and backwards: the sums
// are the same to the bit, since they are of the memory, not of the view.
TEST(permuted_and_reversed_views_give_the_same_sums) {
  const auto bytes = normal_float32(static_cast<size_t>(30 * 40 * 50), 3);
  const ExpHistogram expected = histogram_of(view_of(bytes, FloatFormat::kFloat32), 3);
  const int64_t sizes[] = {30, 40, 50};
  const int64_t strides[] = {40 * 50 * 4, 50 * 4, 4};
  const size_t orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (const auto& order : orders) {
    for (unsigned reversed = 0; reversed < 8; ++reversed) {
      TensorView view;
      view.data = bytes.data();
      view.dims = 3;
      for (size_t i = 0; i < 3; ++i) {
        const size_t dim = order[i];
        const bool is_reversed = (reversed >> i & 1) != 0;
        view.shape[i] = sizes[dim];
        view.strides_bytes[i] = is_reversed ? -strides[dim] : strides[dim];
        if (is_reversed) view.data += strides[dim] * (sizes[dim] - 1);
      }
      CHECK(histogram_of(view, 3) == expected);
    }
  }
}

TEST(a_view_with_gaps_has_the_sums_of_its_copy) {
  const auto wide = normal_float32(static_cast<size_t>(300 * 64), 4);
  std::vector<std::byte> dense;
  TensorView view = view_of(wide, FloatFormat::kFloat32);
  view.dims = 2;
  view.shape = {300, 50};
  view.strides_bytes = {64 * 4, 4};
  for (size_t row = 0; row < 300; ++row) {
    const auto begin = wide.begin() + static_cast<std::ptrdiff_t>(row * 64 * 4);
    dense.insert(dense.end(), begin, begin + 50 * 4);
  }
  CHECK(histogram_of(view, 3) == histogram_of(view_of(dense, FloatFormat::kFloat32), 3));
}

// Counted by a multiplication: 10^15 values one by one would never end.
TEST(a_broadcast_value_counts_as_often_as_it_stands_there) {
  const float values[] = {1.5F, 0.0F, -3.0F, std::numeric_limits<float>::quiet_NaN()};
  TensorView view;
  view.data = reinterpret_cast<const std::byte*>(values);
  view.dims = 3;
  view.shape = {1000000000, 4, 1000000};
  view.strides_bytes = {0, 4, 0};
  const ExpHistogram histogram = histogram_of(view, 3);
  CHECK_EQ(histogram.count(), 3000000000000000U);
  CHECK_EQ(histogram.zero_count(), 1000000000000000U);
  CHECK_EQ(histogram.nan_count(), 1000000000000000U);
  CHECK_EQ(histogram.sum(), -1.5e15);
}

TEST(views_that_no_tensor_has_are_refused) {
  const float value = 1;
  TensorView view = view_of(reinterpret_cast<const std::byte*>(&value), FloatFormat::kFloat32, 1);
  view.dims = 3;
  view.shape = {int64_t{1} << 40, int64_t{1} << 40, 1};
  view.strides_bytes = {0, 0, 0};
  CHECK(is_refused(view));
  view.shape = {-1, 1, 1};
  CHECK(is_refused(view));
}

TEST(an_empty_view_is_not_read) {
  TensorView view;  // of no memory at all
  view.dims = 2;
  view.shape = {0, 5};
  view.strides_bytes = {4, 4};
  CHECK_EQ(histogram_of(view, 3).count(), 0U);
}
