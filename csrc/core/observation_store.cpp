#include "core/observation_store.h"

#include <algorithm>
#include <utility>

namespace pertoken {
namespace {

// Base 128, the low digits first; the top bit of a byte says that another follows.
void put_number(std::vector<uint8_t>& bytes, uint64_t number) {
  while (number >= 0x80) {
    bytes.push_back(static_cast<uint8_t>(number | 0x80));
    number >>= 7;
  }
  bytes.push_back(static_cast<uint8_t>(number));
}

uint64_t take_number(const uint8_t*& at) {
  uint64_t number = 0;
  for (int shift = 0;; shift += 7) {
    const uint8_t byte = *at++;
    number |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return number;
  }
}

}  // namespace

StoredObservation::StoredObservation(int64_t id_number, int64_t step_number,
                                     const Observation& observation)
    : id(id_number),
      step(step_number),
      row(observation.row),
      site(observation.site),
      format(observation.format),
      scale(observation.values.scale()),
      weight(observation.weight),
      count(observation.values.count()),
      zeros(observation.values.zero_count()),
      nans(observation.values.nan_count()),
      pos_infs(observation.values.pos_inf_count()),
      neg_infs(observation.values.neg_inf_count()),
      min(observation.values.min()),
      max(observation.values.max()),
      sum(observation.values.sum()),
      sum_sq(observation.values.sum_sq()) {
  pack(observation.values.positive());
  pack(observation.values.negative());
  packed_.shrink_to_fit();
}

void StoredObservation::pack(const Buckets& side) {
  // Of either sign, as an unsigned number that is small where it is.
  const auto offset = static_cast<uint32_t>(side.offset);
  put_number(packed_, offset << 1 ^ (side.offset < 0 ? ~uint32_t{0} : 0));
  put_number(packed_, side.counts.size());
  for (const uint64_t n : side.counts) {
    put_number(packed_, n);
    filled_ += n != 0;
  }
}

std::vector<StoredObservation::Bucket> StoredObservation::buckets() const {
  std::vector<Bucket> result;
  result.reserve(filled_);
  const uint8_t* at = packed_.data();
  for (const int sign : {1, -1}) {
    const auto folded = static_cast<uint32_t>(take_number(at));
    const auto offset = static_cast<int32_t>(folded >> 1 ^ -(folded & 1));
    const uint64_t size = take_number(at);
    for (uint64_t i = 0; i < size; ++i) {
      const uint64_t n = take_number(at);
      if (n != 0) result.push_back({sign, offset + static_cast<int32_t>(i), n});
    }
  }
  return result;
}

size_t ObservationStore::add(int64_t step, int64_t newest_step, const Observation& observation) {
  const int64_t age_step = step < 0 ? newest_step : step;
  auto stored = std::make_shared<const StoredObservation>(next_id_, step, observation);
  const size_t bytes = stored->bytes();
  held_.push_back({age_step, std::move(stored)});
  ++next_id_;
  return bytes;
}

size_t ObservationStore::evict_below(int64_t first_step) {
  size_t bytes = 0;
  while (!held_.empty() && held_.front().age_step < first_step) bytes += evict_oldest();
  return bytes;
}

size_t ObservationStore::evict_oldest() {
  if (held_.empty()) return 0;
  const size_t bytes = held_.front().observation->bytes();
  held_.pop_front();
  ++evicted_;
  return bytes;
}

std::vector<std::shared_ptr<const StoredObservation>> ObservationStore::snapshot() const {
  std::vector<std::shared_ptr<const StoredObservation>> observations;
  observations.reserve(held_.size());
  for (const Held& held : held_) observations.push_back(held.observation);
  return observations;
}

}  // namespace pertoken
