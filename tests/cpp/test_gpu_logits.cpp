// Logits on GPUs over the fake driver, whose kernels run the logit kernels' own arithmetic: what is
// told of a token is what the reference says of its logits, under its own step, row and place, or
// it is counted.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/float_value.h"
#include "core/logit_stats.h"
#include "core/thread_buffer.h"
#include "core/token_logits.h"
#include "cuda/gpu_logits.h"
#include "emulated_logits.h"
#include "tensor_values.h"

namespace {

using namespace pertoken;
using namespace pertoken::testing;
using namespace pertoken::cuda;

constexpr double kNsPerTick = 1 / FakeDriver::kTicksPerNs;
constexpr std::byte kImage[16] = {};
constexpr int64_t kLong = 12'000'000'000;
constexpr DeviceTokens kNone{0, 0, 0, 0};
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Gpu {
  FakeDriver driver;
  LogitDevices devices;
  std::unique_ptr<GpuLogits> logits;
  ThreadBuffer buffer{1 << 13, 0, kNoThread, "logits"};
  CUstream stream = nullptr;
  KeptLogitRows kept;
  std::string reason;

  explicit Gpu(int count = 1) : driver(count), devices(*driver.api(), kImage) {
    add_logit_kernels(driver);
    driver.set_current(0);
    stream = new_stream();
    start();
  }
  ~Gpu() { CHECK_EQ(driver.misuses(), 0U); }

  void start() { logits = std::make_unique<GpuLogits>(devices, &FakeDriver::ticks); }
  CUstream new_stream() {
    CUstream made = nullptr;
    CHECK_EQ(driver.api()->cuStreamCreate(&made, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    return made;
  }
  // One place a row, unless told.
  bool read(const std::vector<TensorView>& rows, bool copied = true, uint32_t places = 1,
            const DeviceTokens& drafts = kNone) {
    std::vector<uint64_t> addresses;
    for (const TensorView& row : rows) {
      addresses.push_back(reinterpret_cast<uintptr_t>(row.data));
    }
    const TensorView& one = rows.front();
    return logits->read({0, stream},
                        {addresses, one.strides_bytes[0], static_cast<uint32_t>(one.shape[0]),
                         one.format, places, drafts},
                        copied, kept, reason);
  }
  bool tell(const std::vector<ToldToken>& tokens, const DeviceTokens& fed = kNone,
            uint32_t step = 3) {
    return logits->tell({0, stream}, kept, step, 2.0F, tokens, fed, reason);
  }
  std::vector<TokenLogits> collect(int64_t after_ns = 1'000'000) {
    driver.advance(after_ns);
    logits->collect(kNsPerTick, buffer);
    std::vector<TokenLogits> told;
    for (auto records = buffer.ring.readable(); !records.empty();
         records = buffer.ring.readable()) {
      for (const Record& record : records) told.push_back(token_logits_of(record, record.step));
      buffer.ring.release(records.size());
    }
    return told;
  }
};

uint64_t all(const ObservationLosses& losses) {
  return losses.no_room + losses.in_capture + losses.late + losses.failed + losses.lost;
}

void check_close(double actual, double expected) {
  if (std::isnan(expected)) {
    CHECK(std::isnan(actual));
  } else {
    CHECK(std::abs(actual - expected) <= 2e-6 * std::max(1.0, std::abs(expected)));
  }
}

double logprob_of(const TensorView& logits, int64_t token) {
  return value_at(logits.data + token * logits.strides_bytes[0], logits.format) -
         reference_logit_stats(logits).log_sum;
}

void check_told(const TokenLogits& told, const TensorView& logits, int64_t token) {
  const LogitStats expected = reference_logit_stats(logits);
  check_close(told.top1_prob, expected.top1_prob);
  check_close(told.margin, expected.margin);
  check_close(told.entropy, expected.entropy);
  check_close(told.logprob, token < 0 ? LogitStats::kUnknown : logprob_of(logits, token));
}

// Normal values in a format, with what is given among them.
std::vector<std::byte> random_logits(FloatFormat format, size_t count, uint64_t seed,
                                     float spread = 4) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<std::byte> bytes(count * static_cast<size_t>(bytes_of(format)));
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(normal(random));
    if (format == FloatFormat::kFloat32) {
      std::memcpy(&bytes[4 * i], &bits, 4);
      continue;
    }
    // Of a float16 some bits that are no special value: about 2^-15 to 2^16.
    const auto half = static_cast<uint16_t>(format == FloatFormat::kBFloat16
                                                ? bits >> 16
                                                : (random() & 0x8fff) | 0x3000);
    std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

// A row of `count` values that begins at value `first`, `step` values apart.
TensorView row_at(const std::vector<std::byte>& bytes, FloatFormat format, size_t first,
                  size_t count, int64_t step = 1) {
  TensorView row = view_of(bytes.data(), format, count);
  row.data += first * static_cast<size_t>(bytes_of(format));
  row.strides_bytes[0] = step * bytes_of(format);
  return row;
}

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
  CHECK(gpu.read(rows, true, kPlaces,
                 {reinterpret_cast<uintptr_t>(drafts.data()), 16, 8, 8}));
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

TEST(results_come_behind_the_gpu_and_nobody_waits) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  gpu.driver.spin(gpu.stream, 50'000'000);
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.logits->is_pending());
  CHECK(gpu.collect().empty());
  CHECK(gpu.logits->is_pending());
  CHECK_EQ(gpu.collect(100'000'000).size(), 1U);
  CHECK(!gpu.logits->is_pending());
  CHECK(gpu.logits->fullness() > 0);
  CHECK_EQ(gpu.logits->fullness(), 0);
}

TEST(what_cannot_be_read_says_why) {
  Gpu gpu;
  const auto bytes = random_bytes(1000, 1);
  CHECK(!gpu.read({view_of(bytes.data(), FloatFormat::kFloat64, 50)}));
  CHECK(gpu.reason.find("float32") != std::string::npos);
  TensorView row = view_of(bytes.data(), FloatFormat::kFloat32, 50);
  row.data += 1;
  CHECK(!gpu.read({row}));
  CHECK(gpu.reason.find("aligned") != std::string::npos);
  CHECK(!gpu.logits->prepare(5, gpu.reason));
  CHECK(gpu.reason.find("no such GPU") != std::string::npos);
  CHECK_EQ(all(gpu.logits->losses()), 0U);
}

TEST(another_stream_than_that_of_the_logits_is_not_used) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  CHECK(gpu.read({row}));
  const CUstream first = std::exchange(gpu.stream, gpu.new_stream());
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.reason.find("stream") != std::string::npos);
  // Memory that one stream used is not another's.
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  gpu.driver.hold(first);
  CHECK_EQ(gpu.collect().size(), 1U);
  gpu.driver.release(first);
}

TEST(a_capture_is_left_alone_and_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  CHECK(gpu.read({row}));
  const DriverApi& api = *gpu.driver.api();
  CHECK_EQ(api.cuStreamBeginCapture_v2(gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(!gpu.read({row, row}));
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(gpu.stream, &graph), CUDA_SUCCESS);
  size_t nodes = 0;
  CHECK_EQ(api.cuGraphGetNodes(graph, nullptr, &nodes), CUDA_SUCCESS);
  CHECK_EQ(nodes, 0U);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
  CHECK_EQ(gpu.logits->losses().in_capture, 3U);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
}

TEST(memory_that_must_be_made_while_others_capture_breaks_nothing) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 100'000, 6);
  CHECK(gpu.logits->prepare(0, gpu.reason));
  const CUstream other = gpu.new_stream();
  const DriverApi& api = *gpu.driver.api();
  CHECK_EQ(api.cuStreamBeginCapture_v2(other, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  CHECK(gpu.read({row_at(bytes, FloatFormat::kFloat32, 0, 100'000)}));
  CUgraph graph = nullptr;
  CHECK_EQ(api.cuStreamEndCapture(other, &graph), CUDA_SUCCESS);
  CHECK_EQ(gpu.driver.captures_broken(), 0U);
}

TEST(without_room_for_copies_the_rest_is_told) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 500, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 500);
  // Of 130 rows of half a million the copies would take more than there may be.
  TensorView wide = row;
  wide.shape[0] = 520'000;
  wide.strides_bytes[0] = 0;
  CHECK(gpu.read(std::vector<TensorView>(130, wide)));
  CHECK(!gpu.kept.has_copies());
  CHECK(gpu.read({row}));
  CHECK(gpu.kept.has_copies());
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect(100'000'000).size(), 1U);
  // Nor where the GPU has no memory left; and then not even the rest.
  KeptLogitRows other;
  gpu.driver.fail("cuMemAlloc_v2", CUDA_ERROR_OUT_OF_MEMORY, 1);
  const std::vector<uint64_t> one = {reinterpret_cast<uintptr_t>(row.data)};
  const GpuLogitRows rows{one, 4, 500, FloatFormat::kFloat32, 1, kNone};
  CHECK(gpu.logits->read({0, gpu.stream}, rows, true, other, gpu.reason));
  CHECK(!other.has_copies());
  CHECK(gpu.logits->tell({0, gpu.stream}, other, 1, 1.0F, std::vector<ToldToken>{{0, 0, 0, 9}},
                         kNone, gpu.reason));
  const auto told = gpu.collect();
  CHECK_EQ(told.size(), 1U);
  if (!told.empty()) check_told(told[0], row, -1);
  KeptLogitRows third;
  gpu.driver.fail("cuMemAlloc_v2", CUDA_ERROR_OUT_OF_MEMORY, 2);
  CHECK(!gpu.logits->read({0, gpu.stream}, rows, true, third, gpu.reason));
  CHECK_EQ(gpu.logits->losses().no_room, 1U);
}

TEST(more_results_than_there_is_room_for_are_dropped_and_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  const std::vector<ToldToken> tokens(100, ToldToken{0, 0, 0, 9});
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.read({row}));
  size_t launched = 0;
  for (int i = 0; i < 50; ++i) {
    gpu.tell(tokens);
    launched += tokens.size();
  }
  const uint64_t no_room = gpu.logits->losses().no_room;
  CHECK(no_room > 0);
  CHECK(gpu.collect().empty());
  gpu.driver.release(gpu.stream);
  CHECK_EQ(gpu.collect(100'000'000).size() + no_room, launched);
  CHECK_EQ(all(gpu.logits->losses()), no_room);
  CHECK(gpu.tell(tokens));
  CHECK_EQ(gpu.collect().size(), tokens.size());
}

TEST(what_does_not_come_in_time_or_from_a_gpu_that_failed_is_counted) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  CHECK(gpu.read({row}));
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.tell({{0, 0, 0, 9}, {0, 0, 0, 9}}));
  CHECK(gpu.collect(kLong).empty());
  CHECK_EQ(gpu.logits->losses().late, 2U);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.collect().empty());
  gpu.logits->give_up();
  CHECK(gpu.collect().empty());
  CHECK_EQ(gpu.logits->losses().late, 3U);
  CHECK(!gpu.logits->is_pending());
  gpu.driver.release(gpu.stream);
  CHECK(gpu.collect(kLong).empty());  // too late
  gpu.driver.fail("cuLaunchKernel", CUDA_ERROR_ILLEGAL_ADDRESS);
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK(gpu.collect().empty());
  CHECK_EQ(gpu.logits->losses().failed, 1U);
  CHECK(!gpu.read({row}));
  CHECK(!gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.logits->losses().failed, 3U);
  CHECK(gpu.logits->losses().failure.find("ILLEGAL_ADDRESS") != std::string::npos);
}

TEST(the_next_recording_goes_on_with_what_the_last_one_made) {
  Gpu gpu;
  const auto bytes = random_logits(FloatFormat::kFloat32, 40, 6);
  const TensorView row = row_at(bytes, FloatFormat::kFloat32, 0, 40);
  CHECK(gpu.read({row}));
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
  const size_t made = gpu.driver.live_allocations();
  gpu.start();
  KeptLogitRows later;  // while the first still holds its memory
  const std::vector<uint64_t> one = {reinterpret_cast<uintptr_t>(row.data)};
  const GpuLogitRows rows{one, 4, 40, FloatFormat::kFloat32, 1, kNone};
  CHECK(gpu.logits->read({0, gpu.stream}, rows, true, later, gpu.reason));
  CHECK_EQ(gpu.driver.live_allocations(), made + 1);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  CHECK_EQ(gpu.collect().size(), 1U);
  // One that may still be written to is not handed out.
  gpu.driver.hold(gpu.stream);
  CHECK(gpu.tell({{0, 0, 0, 9}}));
  gpu.start();
  CHECK(gpu.logits->prepare(0, gpu.reason));
  CHECK(gpu.driver.live_allocations() > made + 1);
  gpu.driver.release(gpu.stream);
  CHECK(gpu.collect().empty());
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
