// What is told of a token whose logits lie on a GPU is what the reference says of them, under its
// own step, row and place.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "logit_rig.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;

using Gpu = LogitRig;

const std::vector<FloatFormat> kFormats = {FloatFormat::kFloat32, FloatFormat::kFloat16,
                                           FloatFormat::kBFloat16};

}  // namespace

TEST(every_format_size_alignment_and_stride_is_as_the_reference_says) {
  Gpu gpu;
  std::mt19937_64 random(5);
  for (const FloatFormat format : kFormats) {
    for (const size_t count : {1U, 2U, 7U, 16U, 1000U, 16'384U, 16'385U, 50'257U}) {
      for (const int64_t step : {1, 3}) {
        const auto bytes = random_logits(format, count * static_cast<size_t>(step) + 16, count);
        const TensorView row = row_at(bytes, format, random() % 9, count, step);
        const auto token = static_cast<int32_t>(random() % count);
        CHECK(gpu.read({row}));
        CHECK(gpu.kept.has_copies());
        CHECK(gpu.tell({{0, 11, 5, token}}));
        const auto told = gpu.collect();
        CHECK_EQ(told.size(), 1U);
        if (told.empty()) continue;
        check_told(told[0], row, token);
        CHECK_EQ(told[0].step, 3);
        CHECK_EQ(told[0].row, 11U);
        CHECK_EQ(told[0].place, 5U);
        CHECK_EQ(told[0].weight, 2.0F);
      }
    }
  }
  CHECK_EQ(all(gpu.logits->losses()), 0U);
  CHECK_EQ(gpu.driver.calls("cuStreamSynchronize"), 1U);  // when the device was set up
}

TEST(masks_ties_and_what_is_no_number) {
  Gpu gpu;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float largest = std::numeric_limits<float>::max();
  const std::vector<std::vector<float>> cases = {
      {3, 3, 3, -kInfinity}, {-kInfinity, -kInfinity}, {largest, -largest, 0}, {-largest, largest},
      {1, nan, 2},           {1, kInfinity, 2},        {0, -0.0F, -kInfinity}};
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const size_t count : {cases[i].size(), size_t{20'001}}) {
      std::vector<float> values(count, -kInfinity);
      for (size_t j = 0; j < cases[i].size(); ++j) {
        values[(j * 9973 + i) % count] = cases[i][j];
      }
      const auto bytes = bytes_of_all(values);
      const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, count);
      CHECK(gpu.read({row}));
      CHECK(gpu.tell({{0, 0, 0, 1}}));
      const auto told = gpu.collect();
      CHECK_EQ(told.size(), 1U);
      if (!told.empty()) check_told(told[0], row, 1);
    }
  }
}

TEST(a_copy_outlives_the_logits_and_ids_are_read_where_they_lie) {
  Gpu gpu;
  constexpr size_t kRows = 150;  // more than one launch has
  constexpr size_t kVocabulary = 1003;
  auto bytes = random_logits(FloatFormat::kBFloat16, kRows * kVocabulary, 3);
  const auto before = bytes;
  std::vector<TensorView> rows;
  std::vector<TensorView> as_they_were;
  std::vector<ToldToken> tokens;
  std::vector<int64_t> ids;
  for (size_t row = 0; row < kRows; ++row) {
    rows.push_back(row_at(bytes, FloatFormat::kBFloat16, row * kVocabulary, kVocabulary));
    as_they_were.push_back(row_at(before, FloatFormat::kBFloat16, row * kVocabulary, kVocabulary));
    const auto number = static_cast<uint32_t>(row);
    tokens.push_back({number, number, 0, kFedToken});
    ids.push_back(row == 7 ? -5 : row == 8 ? int64_t{kVocabulary} : static_cast<int64_t>(row * 6));
  }
  CHECK(gpu.read(rows));
  gpu.driver.advance(1'000'000);
  std::fill(bytes.begin(), bytes.end(), std::byte{0x7f});
  const DeviceTokens fed{reinterpret_cast<uintptr_t>(ids.data()), 8, 8, 8};
  CHECK(gpu.tell(tokens, fed));
  auto told = gpu.collect();
  CHECK_EQ(told.size(), kRows);
  for (const TokenLogits& token : told) {
    // An id that is none says nothing, and reads nothing.
    const bool is_none = token.row == 7 || token.row == 8;
    check_told(token, as_they_were[token.row], is_none ? -1 : ids[token.row]);
  }
  // The same once more, of ids of 32 bits, a part of the rows, in the order of their own.
  const std::vector<int32_t> narrow = {4, 9};
  CHECK(gpu.tell({{20, 1, 0, kFedToken}, {10, 0, 2, kFedToken}},
                 {reinterpret_cast<uintptr_t>(narrow.data()), 4, 4, 4}));
  told = gpu.collect();
  CHECK_EQ(told.size(), 2U);
  check_told(told[0], as_they_were[20], 9);
  check_told(told[1], as_they_were[10], 4);
}

TEST(candidates_that_are_verified_are_found_while_the_logits_are_there) {
  Gpu gpu;
  constexpr uint32_t kPlaces = 3;
  constexpr size_t kVocabulary = 333;
  auto bytes = random_logits(FloatFormat::kFloat32, 2 * kPlaces * kVocabulary, 4);
  const auto before = bytes;
  std::vector<TensorView> rows;
  for (size_t i = 0; i < size_t{2} * kPlaces; ++i) {
    rows.push_back(row_at(bytes, FloatFormat::kFloat32, i * kVocabulary, kVocabulary));
  }
  std::vector<int64_t> drafts = {1, 2, 300, 400};  // (rows, places - 1)
  CHECK(gpu.read(rows, true, kPlaces, {reinterpret_cast<uintptr_t>(drafts.data()), 16, 8, 8}));
  gpu.driver.advance(1'000'000);
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
  std::fill(drafts.begin(), drafts.end(), 0);
  CHECK(gpu.tell({{0, 0, 0, kDraftToken},
                  {1, 0, 1, kDraftToken},
                  {2, 0, 2, 77},
                  {3, 1, 0, kDraftToken},
                  {4, 1, 1, kDraftToken},
                  {5, 1, 2, kUnknownToken}}));
  const auto told = gpu.collect();
  CHECK_EQ(told.size(), 6U);
  const std::vector<int64_t> chosen = {1, 2, 77, 300, -1, -1};
  for (size_t i = 0; i < told.size(); ++i) {
    check_told(told[i], row_at(before, FloatFormat::kFloat32, i * kVocabulary, kVocabulary),
               chosen[i]);
  }
}

// Steps whose streams stall and go on, with logits that are overwritten behind them.
TEST(under_random_schedules_all_that_is_told_is_right) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    std::mt19937_64 random(seed);
    Gpu gpu;
    constexpr size_t kVocabulary = 77;
    std::vector<std::vector<std::byte>> held;
    std::map<std::pair<int64_t, uint32_t>, std::pair<TensorView, int64_t>> expected;
    std::vector<TokenLogits> told;
    bool is_held = false;
    uint64_t committed = 0;
    for (uint32_t step = 0; step < 60; ++step) {
      const size_t count = 1 + random() % 70;
      held.push_back(random_logits(FloatFormat::kFloat32, count * kVocabulary, step));
      std::vector<TensorView> rows;
      std::vector<ToldToken> tokens;
      for (uint32_t row = 0; row < count; ++row) {
        rows.push_back(row_at(held.back(), FloatFormat::kFloat32, row * kVocabulary, kVocabulary));
        const auto token = static_cast<int32_t>(random() % kVocabulary);
        tokens.push_back({row, row, 0, token});
        expected[{step, row}] = {rows.back(), token};
      }
      if (!gpu.read(rows)) continue;
      gpu.tell(tokens, kNone, step);
      committed += count;
      if (random() % 8 == 0) {
        is_held ? gpu.driver.release(gpu.stream) : gpu.driver.hold(gpu.stream);
        is_held = !is_held;
      }
      if (random() % 3 == 0) {
        for (const TokenLogits& token : gpu.collect(static_cast<int64_t>(random() % 20'000))) {
          told.push_back(token);
        }
      }
    }
    if (is_held) gpu.driver.release(gpu.stream);
    for (const TokenLogits& token : gpu.collect(1'000'000'000)) told.push_back(token);
    CHECK_EQ(told.size() + all(gpu.logits->losses()), committed);
    for (const TokenLogits& token : told) {
      const auto& [row, chosen] = expected.at({token.step, token.row});
      check_told(token, row, chosen);
    }
  }
}
