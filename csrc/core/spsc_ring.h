// A bounded queue between one producer thread (the model's) and one consumer at a time (the
// collector, under its mutex). Never blocks and never allocates after construction: when there is
// no room, try_push says so and the caller counts the loss.
//
// Each side keeps a copy of the other's index on its own cache line and reads the shared one only
// when the copy says full (or empty). Indices count up for ever and wrap with their type; Capacity
// is a power of two that divides the type's range, so a narrow Index exercises the wrap in tests.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

namespace pertoken {

template <typename T, typename Index = uint64_t>
class SpscRing {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(std::is_unsigned_v<Index>);

 public:
  // Capacity is rounded up to a power of two. Memory is not touched before it is first written.
  // Throws std::bad_alloc.
  explicit SpscRing(size_t capacity)
      : capacity_(static_cast<Index>(std::bit_ceil(capacity))),
        mask_(static_cast<Index>(capacity_ - 1)),
        slots_(new T[capacity_]) {}

  SpscRing(const SpscRing&) = delete;
  SpscRing& operator=(const SpscRing&) = delete;

  // Producer only.
  bool try_push(const T& value) noexcept {
    const Index head = head_.load(std::memory_order_relaxed);
    if (static_cast<Index>(head - cached_tail_) == capacity_) [[unlikely]] {
      // Pairs with the release store in release(): the slot's previous reader is done with it.
      cached_tail_ = tail_.load(std::memory_order_acquire);
      if (static_cast<Index>(head - cached_tail_) == capacity_) return false;
    }
    slots_[head & mask_] = value;
    // Pairs with the acquire load in readable(): publishes the slot's contents.
    head_.store(static_cast<Index>(head + 1), std::memory_order_release);
    return true;
  }

  // Producer only: how many were pushed, as far as Index can count.
  Index pushed() const noexcept { return head_.load(std::memory_order_relaxed); }

  // Consumer only: the records that can be read now, in order, up to the end of the buffer; call
  // again after release() for those that wrapped round.
  std::span<const T> readable() noexcept {
    const Index tail = tail_.load(std::memory_order_relaxed);
    if (cached_head_ == tail) {
      // Pairs with the release store in try_push().
      cached_head_ = head_.load(std::memory_order_acquire);
    }
    const Index available = static_cast<Index>(cached_head_ - tail);
    const Index to_end = static_cast<Index>(capacity_ - (tail & mask_));
    return {slots_.get() + (tail & mask_), available < to_end ? available : to_end};
  }

  // Consumer only: gives back the first `count` of what readable() returned.
  void release(size_t count) noexcept {
    const Index tail = tail_.load(std::memory_order_relaxed);
    // Pairs with the acquire load of tail_ in try_push().
    tail_.store(static_cast<Index>(tail + count), std::memory_order_release);
  }

  size_t capacity() const noexcept { return capacity_; }

 private:
  static constexpr size_t kCacheLineBytes = 64;

  alignas(kCacheLineBytes) std::atomic<Index> head_{0};  // written by the producer
  Index cached_tail_ = 0;                                // the producer's copy of tail_
  alignas(kCacheLineBytes) std::atomic<Index> tail_{0};  // written by the consumer
  Index cached_head_ = 0;                                // the consumer's copy of head_
  alignas(kCacheLineBytes) const Index capacity_;
  const Index mask_;
  const std::unique_ptr<T[]> slots_;
};

}  // namespace pertoken
