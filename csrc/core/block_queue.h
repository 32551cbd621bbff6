// A queue in blocks of 64 KiB, for what a store takes in by the thousand. std::deque's blocks are
// of half a KiB: glibc extends the memory of a thread that is not the first by what is asked for, a
// system call for every few of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <type_traits>
#include <vector>

namespace pertoken {

template <typename T>
class BlockQueue {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  static constexpr size_t kItemsInBlock = (size_t{64} << 10) / sizeof(T);

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](size_t index) { return *place(index); }
  const T& operator[](size_t index) const { return *place(index); }
  const T& front() const { return (*this)[0]; }

  // Throws std::bad_alloc, and is as before.
  T& push_back(const T& item) {
    if (first_ + size_ == blocks_.size() * kItemsInBlock) add_block();
    T* at = place(size_);
    *at = item;
    ++size_;
    return *at;
  }

  // Of one that is not empty.
  void pop_front() {
    ++first_;
    --size_;
    if (first_ < kItemsInBlock) return;
    first_ = 0;
    spare_ = std::move(blocks_.front());
    blocks_.pop_front();
  }

  // In order; until `use` returns false, where it returns anything.
  template <typename Use>
  void for_each(Use use, size_t from = 0) const {
    for (size_t index = from; index < size_; ++index) {
      if constexpr (std::is_void_v<std::invoke_result_t<Use, const T&>>) {
        use((*this)[index]);
      } else {
        if (!use((*this)[index])) return;
      }
    }
  }

  std::vector<T> copy() const {
    std::vector<T> items;
    items.reserve(size_);
    for (size_t index = 0; index < size_;) {
      const size_t in_block = (first_ + index) % kItemsInBlock;
      const size_t count = std::min(kItemsInBlock - in_block, size_ - index);
      items.insert(items.end(), place(index), place(index) + count);
      index += count;
    }
    return items;
  }

 private:
  void add_block() {
    if (spare_ != nullptr) {
      blocks_.push_back(nullptr);
      blocks_.back() = std::move(spare_);
    } else {
      blocks_.push_back(std::unique_ptr<T[]>(new T[kItemsInBlock]));
    }
  }
  T* place(size_t index) const {
    const size_t at = first_ + index;
    return blocks_[at / kItemsInBlock].get() + at % kItemsInBlock;
  }

  std::deque<std::unique_ptr<T[]>> blocks_;
  std::unique_ptr<T[]> spare_;  // of what was taken out last
  size_t first_ = 0;            // in the first block
  size_t size_ = 0;
};

}  // namespace pertoken
