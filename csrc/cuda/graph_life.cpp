#include "cuda/graph_life.h"

namespace pertoken::cuda {

// On a thread of the driver's, which may call nothing of it.
void GraphLife::end(void* held) noexcept {
  const std::unique_ptr<std::shared_ptr<GraphLife>> life(
      static_cast<std::shared_ptr<GraphLife>*>(held));
  (*life)->is_over_.store(true, std::memory_order_release);
}

std::shared_ptr<const GraphLife> GraphLife::watch(const DriverApi& api, CUgraph graph) {
  auto life = std::make_shared<GraphLife>();
  auto* const held = new std::shared_ptr<GraphLife>(life);  // the object's, once there is one
  CUuserObject object = nullptr;
  if (api.cuUserObjectCreate(&object, held, &GraphLife::end, 1,
                             CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) != CUDA_SUCCESS) {
    delete held;
    return life;
  }
  if (api.cuGraphRetainUserObject(graph, object, 1, CU_GRAPH_USER_OBJECT_MOVE) == CUDA_SUCCESS) {
    return life;
  }
  // It ends with the object, which the graph does not have.
  auto endless = std::make_shared<GraphLife>();
  api.cuUserObjectRelease(object, 1);
  return endless;
}

}  // namespace pertoken::cuda
