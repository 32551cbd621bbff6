// A bounded queue between one producer thread (the model's) and one consumer at a time (the
// collector, under its mutex). Never blocks and never allocates after construction: when there is
// no room, try_push says so and the caller counts the loss.
//
// Each side reads the other's index only where it must: the consumer when what it knew of is taken,
// the producer where the ring would be half full, and where it would be full. At half it tells that
// the ring fills, so that a consumer that sleeps may come in time. Indices count up for ever and
// wrap with their type; Capacity is a power of two that divides the type's range, so a narrow Index
// exercises the wrap in tests.
//
// Indices and slots lie in one block, which may be a file that is mapped: what was pushed and not
// taken can then be read out of the file when the process is gone (spool_format.h).
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <type_traits>

namespace pertoken {

inline constexpr size_t kCacheLineBytes = 64;

template <typename T, typename Index = uint64_t>
class SpscRing {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(std::is_unsigned_v<Index>);
  static_assert(alignof(T) <= kCacheLineBytes);

 public:
  struct Indices {
    alignas(kCacheLineBytes) std::atomic<Index> head{0};  // written by the producer
    Index look_at = 0;  // the producer's: the head at which it reads the tail
    alignas(kCacheLineBytes) std::atomic<Index> tail{0};  // written by the consumer
    Index cached_head = 0;                                // the consumer's copy of head
  };

  // What a block takes: the indices, and the slots behind them.
  static size_t block_bytes(size_t capacity) {
    return sizeof(Indices) + std::bit_ceil(capacity) * sizeof(T);
  }

  // Capacity is rounded up to a power of two. The block has block_bytes(capacity), aligned to a
  // cache line, and outlives the ring; without one the ring has its own. The memory of slots is
  // not touched before it is first written. Throws std::bad_alloc.
  explicit SpscRing(size_t capacity, void* block = nullptr)
      : own_block_(block != nullptr ? nullptr
                                    : ::operator new(block_bytes(capacity), kBlockAlignment)),
        indices_(new (block != nullptr ? block : own_block_.get()) Indices),
        capacity_(static_cast<Index>(std::bit_ceil(capacity))),
        mask_(static_cast<Index>(capacity_ - 1)) {}

  SpscRing(const SpscRing&) = delete;
  SpscRing& operator=(const SpscRing&) = delete;

  // Producer only. Calls `on_filling` where half of the ring or more is in use, once until half of
  // it was free again, and when it is full.
  template <typename OnFilling>
  bool try_push(const T& value, OnFilling on_filling) noexcept {
    Indices& at = *indices_;
    const Index head = at.head.load(std::memory_order_relaxed);
    if (head == at.look_at) [[unlikely]] {
      const Room room = look(head);
      if (room != Room::kAmple) on_filling();
      if (room == Room::kNone) return false;
    }
    slots()[head & mask_] = value;
    fetch_for_writing(slots() + ((head + kFetchedAhead) & mask_));
    // Pairs with the acquire load in readable(): publishes the slot's contents.
    at.head.store(static_cast<Index>(head + 1), std::memory_order_release);
    return true;
  }
  bool try_push(const T& value) noexcept {
    return try_push(value, [] {});
  }

  // Producer only: how many were pushed, as far as Index can count.
  Index pushed() const noexcept { return indices_->head.load(std::memory_order_relaxed); }

  // Consumer only: the records that can be read now, in order, up to the end of the buffer; call
  // again after release() for those that wrapped round.
  std::span<const T> readable() noexcept {
    const Index tail = taken();
    if (indices_->cached_head == tail) {
      // Pairs with the release store in try_push().
      indices_->cached_head = indices_->head.load(std::memory_order_acquire);
    }
    const Index available = static_cast<Index>(indices_->cached_head - tail);
    const Index to_end = static_cast<Index>(capacity_ - (tail & mask_));
    return {slots() + (tail & mask_), available < to_end ? available : to_end};
  }

  // Consumer only: how many were given back.
  Index taken() const noexcept { return indices_->tail.load(std::memory_order_relaxed); }

  // Consumer only: gives back the first `count` of what readable() returned.
  void release(size_t count) noexcept {
    // Pairs with the acquire load of the tail in try_push().
    indices_->tail.store(static_cast<Index>(taken() + count), std::memory_order_release);
  }

  // While nobody else uses it: empty, with the count that pushed() shall give.
  void restart(Index count) noexcept {
    indices_->head.store(count, std::memory_order_relaxed);
    indices_->tail.store(count, std::memory_order_relaxed);
    indices_->cached_head = indices_->look_at = count;
  }

  size_t capacity() const noexcept { return capacity_; }

 private:
  static constexpr std::align_val_t kBlockAlignment{kCacheLineBytes};
  // Two cache lines, so that the next one but one is on its way while the next is filled.
  static constexpr Index kFetchedAhead = 2 * kCacheLineBytes / sizeof(T);

  struct Free {
    void operator()(void* block) const noexcept { ::operator delete(block, kBlockAlignment); }
  };

  // The consumer has last had the line, and nobody since: without, a store that waits for it holds
  // up the stores of the program behind it.
  static void fetch_for_writing(const T* slot) noexcept {
#ifdef __x86_64__
    // What __builtin_prefetch gives is a fetch for reading, unless compiled for newer processors;
    // to older ones this is no operation.
    asm volatile("prefetchw %0" : : "m"(*slot));
#else
    __builtin_prefetch(slot, 1);
#endif
  }

  enum class Room : uint8_t { kAmple, kLessThanHalf, kNone };

  [[gnu::noinline, gnu::cold]] Room look(Index head) noexcept {
    // Pairs with the release store in release(): the slots' previous reader is done with them.
    const Index tail = indices_->tail.load(std::memory_order_acquire);
    const Index used = static_cast<Index>(head - tail);
    const Index half = capacity_ / 2;
    const bool is_ample = used < half;
    indices_->look_at = static_cast<Index>(tail + (is_ample ? half : capacity_));
    if (is_ample) return Room::kAmple;
    return used == capacity_ ? Room::kNone : Room::kLessThanHalf;
  }

  // Computed from the indices, so that a push loads one pointer.
  T* slots() const noexcept { return reinterpret_cast<T*>(indices_ + 1); }

  const std::unique_ptr<void, Free> own_block_;
  Indices* const indices_;
  const Index capacity_;
  const Index mask_;
};

}  // namespace pertoken
