// Whether a captured graph is still there: itself, a clone, an executable that was made of it, or a
// launch under way. Only when none is does nothing write any more to what its nodes point to. The
// driver tells by a user object that the graph owns: executables and clones share it, and it goes
// when the last of them has, and their launches are done.
#pragma once

#include <atomic>
#include <memory>

#include "cuda/driver_api.h"

namespace pertoken::cuda {

class GraphLife {
 public:
  // Of a graph that is being captured, with its context current; cold. Where the driver refuses,
  // it never ends. Throws std::bad_alloc.
  static std::shared_ptr<const GraphLife> watch(const DriverApi& api, CUgraph graph);

  // Any thread.
  bool is_over() const noexcept {
    // Pairs with the release store in end(): nothing of the graph runs after it.
    return is_over_.load(std::memory_order_acquire);
  }

 private:
  static void end(void* held) noexcept;

  std::atomic<bool> is_over_{false};
};

}  // namespace pertoken::cuda
