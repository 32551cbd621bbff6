#include "core/observation_store.h"

#include <algorithm>
#include <span>
#include <utility>

#include "core/packed_buckets.h"

namespace pertoken {

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
  for (const Buckets* side : {&observation.values.positive(), &observation.values.negative()}) {
    pack(*side, packed_);
    filled_ += static_cast<uint32_t>(
        std::ranges::count_if(side->counts, [](uint64_t n) { return n != 0; }));
  }
  packed_.shrink_to_fit();
}

std::vector<StoredObservation::Bucket> StoredObservation::buckets() const {
  std::vector<Bucket> result;
  result.reserve(filled_);
  std::span<const uint8_t> packed(packed_);
  for (const int sign : {1, -1}) {
    Buckets side;
    unpack(packed, side);
    for (size_t i = 0; i < side.counts.size(); ++i) {
      if (side.counts[i] == 0) continue;
      result.push_back({sign, side.offset + static_cast<int32_t>(i), side.counts[i]});
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
