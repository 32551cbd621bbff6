// Captures and graphs of the fake driver. A graph is the list of what was captured, in order, and
// runs so.
#include <algorithm>

#include "fake_driver.h"

namespace pertoken::testing {

using namespace cuda;

CUgraphNode FakeDriver::capture(Stream& stream, FakeWork work) {
  const auto node = new_handle<CUgraphNode>();
  Node& made = nodes_[node];
  made.work = std::move(work);
  made.graph = stream.graph;
  made.behind = std::exchange(stream.behind, {node});
  for (auto& bytes : made.work.parameters) made.work.parameter_pointers.push_back(bytes.data());
  graphs_.at(stream.graph).nodes.push_back(node);
  return node;
}

// Where it waits for an event of a capture, a stream is captured, too.
void FakeDriver::join_capture(Stream& stream, const Event& event) {
  if (stream.capture == CU_STREAM_CAPTURE_STATUS_NONE) {
    const auto origin = std::ranges::find_if(streams_, [&](const auto& entry) {
      return entry.second.capture == CU_STREAM_CAPTURE_STATUS_ACTIVE &&
             entry.second.capture_id == event.capture_id;
    });
    if (origin == streams_.end()) return count_misuse();
    stream.capture = origin->second.capture;
    stream.capture_mode = origin->second.capture_mode;
    stream.capturing_thread = origin->second.capturing_thread;
    stream.capture_id = event.capture_id;
    stream.graph = origin->second.graph;
    stream.behind.clear();
  }
  for (const CUgraphNode node : event.behind) {
    if (std::ranges::find(stream.behind, node) == stream.behind.end())
      stream.behind.push_back(node);
  }
}

bool FakeDriver::leave_capture(Stream& origin) {
  std::set<CUgraphNode> reached;
  std::vector<CUgraphNode> next = origin.behind;
  while (!next.empty()) {
    const CUgraphNode node = next.back();
    next.pop_back();
    if (!reached.insert(node).second) continue;
    const auto& behind = nodes_.at(node).behind;
    next.insert(next.end(), behind.begin(), behind.end());
  }
  bool is_joined = true;
  const unsigned long long capture_id = origin.capture_id;
  for (auto& [handle, stream] : streams_) {
    if (stream.capture_id != capture_id) continue;
    stream.capture = CU_STREAM_CAPTURE_STATUS_NONE;
    stream.capture_id = 0;
    is_joined = is_joined && std::ranges::all_of(stream.behind, [&](CUgraphNode node) {
                  return reached.contains(node);
                });
  }
  return is_joined;
}

void FakeDriver::retain_objects(const std::vector<CUuserObject>& objects) {
  for (const CUuserObject object : objects) ++objects_.at(object).references;
}

void FakeDriver::release_objects(const std::vector<CUuserObject>& objects) {
  for (const CUuserObject object : objects) {
    const auto found = objects_.find(object);
    if (--found->second.references != 0) continue;
    found->second.destroy(found->second.of_user);
    objects_.erase(found);
  }
}

void FakeDriver::destroy_graph(CUgraph graph) {
  const auto found = graphs_.find(graph);
  for (const CUgraphNode node : found->second.nodes) nodes_.erase(node);
  release_objects(found->second.objects);
  graphs_.erase(found);
}

size_t FakeDriver::live_user_objects() {
  const std::lock_guard lock(mutex_);
  return objects_.size();
}

size_t FakeDriver::disabled_nodes(CUgraphExec exec) {
  const std::lock_guard lock(mutex_);
  return execs_.at(exec).disabled.size();
}

struct FakeGraphCalls {
  static CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamBeginCapture_v2")) return result;
    FakeDriver::Stream* target = fake->find(stream);
    if (target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (stream == nullptr || target->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    target->capture = CU_STREAM_CAPTURE_STATUS_ACTIVE;
    target->capture_mode = mode;
    target->capturing_thread = fake_thread();
    target->capture_id = fake->next_id_++;
    target->graph = fake->new_handle<CUgraph>();
    target->behind.clear();
    fake->graphs_[target->graph] = {};
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamEndCapture")) return result;
    FakeDriver::Stream* target = fake->find(stream);
    if (target == nullptr || target->capture == CU_STREAM_CAPTURE_STATUS_NONE) {
      return CUDA_ERROR_INVALID_HANDLE;
    }
    const bool is_valid = target->capture == CU_STREAM_CAPTURE_STATUS_ACTIVE;
    const bool is_joined = fake->leave_capture(*target);
    const bool is_whole = is_valid && is_joined;
    *graph = is_whole ? target->graph : nullptr;
    if (!is_whole) fake->destroy_graph(target->graph);
    if (is_whole) return CUDA_SUCCESS;
    return is_valid ? CUDA_ERROR_STREAM_CAPTURE_UNJOINED : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  }
  static CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus* status,
                                            unsigned long long* id, CUgraph* graph,
                                            const CUgraphNode** dependencies,
                                            size_t* dependency_count) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamGetCaptureInfo_v2")) return result;
    const FakeDriver::Stream* target = fake->find(stream);
    if (target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    *status = target->capture;
    if (target->capture != CU_STREAM_CAPTURE_STATUS_ACTIVE) return CUDA_SUCCESS;
    if (id != nullptr) *id = target->capture_id;
    if (graph != nullptr) *graph = target->graph;
    if (dependencies != nullptr) *dependencies = target->behind.data();
    if (dependency_count != nullptr) *dependency_count = target->behind.size();
    return CUDA_SUCCESS;
  }
  static CUresult cuStreamUpdateCaptureDependencies(CUstream stream, CUgraphNode* nodes,
                                                    size_t count, unsigned flags) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuStreamUpdateCaptureDependencies")) return result;
    FakeDriver::Stream* target = fake->find(stream);
    if (target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (target->capture != CU_STREAM_CAPTURE_STATUS_ACTIVE ||
        flags != CU_STREAM_SET_CAPTURE_DEPENDENCIES) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    target->behind.assign(nodes, nodes + count);
    return CUDA_SUCCESS;
  }

  static CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* count) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphGetNodes")) return result;
    const auto found = fake->graphs_.find(graph);
    if (found == fake->graphs_.end()) return CUDA_ERROR_INVALID_VALUE;
    const auto& all = found->second.nodes;
    if (nodes != nullptr) {
      *count = std::min(*count, all.size());
      std::copy_n(all.begin(), *count, nodes);
    } else {
      *count = all.size();
    }
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphNodeGetType")) return result;
    const auto found = fake->nodes_.find(node);
    if (found == fake->nodes_.end()) return CUDA_ERROR_INVALID_VALUE;
    *type = found->second.work.type;
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node,
                                                CUDA_KERNEL_NODE_PARAMS* parameters) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphKernelNodeGetParams_v2")) return result;
    const auto found = fake->nodes_.find(node);
    if (found == fake->nodes_.end() || found->second.work.type != CU_GRAPH_NODE_TYPE_KERNEL) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    FakeWork& work = found->second.work;
    *parameters = {};
    parameters->func = work.function;
    parameters->gridDimX = work.grid[0];
    parameters->gridDimY = work.grid[1];
    parameters->gridDimZ = work.grid[2];
    parameters->blockDimX = work.block[0];
    parameters->blockDimY = work.block[1];
    parameters->blockDimZ = work.block[2];
    parameters->sharedMemBytes = work.shared_bytes;
    parameters->kernelParams = work.parameter_pointers.data();
    return CUDA_SUCCESS;
  }

  static CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph,
                                              unsigned long long) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphInstantiateWithFlags")) return result;
    const auto found = fake->graphs_.find(graph);
    if (found == fake->graphs_.end()) return CUDA_ERROR_INVALID_VALUE;
    *exec = fake->new_handle<CUgraphExec>();
    FakeDriver::Exec& made = fake->execs_[*exec];
    made.nodes = found->second.nodes;
    made.objects = found->second.objects;
    fake->retain_objects(made.objects);
    for (const CUgraphNode node : made.nodes) made.work[node] = fake->nodes_.at(node).work;
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned enabled) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphNodeSetEnabled")) return result;
    const auto found = fake->execs_.find(exec);
    if (found == fake->execs_.end()) {
      fake->count_misuse();
      return CUDA_ERROR_INVALID_VALUE;
    }
    const auto work = found->second.work.find(node);
    if (work == found->second.work.end()) return CUDA_ERROR_INVALID_VALUE;
    if (!fake->nodes_.contains(node)) {  // the graph that it was made of is gone, and nodes with it
      fake->count_misuse();
      return CUDA_ERROR_INVALID_VALUE;
    }
    const CUgraphNodeType type = work->second.type;
    if (type != CU_GRAPH_NODE_TYPE_KERNEL && type != CU_GRAPH_NODE_TYPE_MEMSET &&
        type != CU_GRAPH_NODE_TYPE_MEMCPY) {
      return CUDA_ERROR_INVALID_VALUE;  // as the driver: only these can be switched
    }
    if (enabled != 0) {
      found->second.disabled.erase(node);
    } else {
      found->second.disabled.insert(node);
    }
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned* enabled) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphNodeGetEnabled")) return result;
    const auto found = fake->execs_.find(exec);
    if (found == fake->execs_.end() || !found->second.work.contains(node)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    *enabled = found->second.disabled.contains(node) ? 0 : 1;
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphLaunch")) return result;
    const auto found = fake->execs_.find(exec);
    FakeDriver::Stream* target = fake->find(stream);
    if (found == fake->execs_.end() || target == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (target->capture != CU_STREAM_CAPTURE_STATUS_NONE) {
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    const int64_t at_ns = fake->now_ns();
    for (const CUgraphNode node : found->second.nodes) {
      FakeWork work;
      int64_t duration_ns = fake->disabled_node_ns_;
      if (!found->second.disabled.contains(node)) {
        work = found->second.work.at(node);
        duration_ns = fake->duration_of(work);
      }
      work.launched = exec;
      fake->enqueue(*target, std::move(work), duration_ns, at_ns);
    }
    const std::vector<CUuserObject>& objects = found->second.objects;
    if (objects.empty()) return CUDA_SUCCESS;
    // They are kept until the launch is done.
    fake->retain_objects(objects);
    FakeWork end;
    end.type = CU_GRAPH_NODE_TYPE_MEMSET;
    end.effect = [objects] { fake->release_objects(objects); };
    fake->enqueue(*target, std::move(end), 0, at_ns);
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphExecDestroy(CUgraphExec exec) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphExecDestroy")) return result;
    const auto found = fake->execs_.find(exec);
    if (found == fake->execs_.end()) return CUDA_ERROR_INVALID_VALUE;
    fake->release_objects(found->second.objects);
    fake->execs_.erase(found);
    return CUDA_SUCCESS;
  }
  static CUresult cuGraphDestroy(CUgraph graph) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphDestroy")) return result;
    if (!fake->graphs_.contains(graph)) return CUDA_ERROR_INVALID_VALUE;
    fake->destroy_graph(graph);
    return CUDA_SUCCESS;
  }

  static CUresult cuUserObjectCreate(CUuserObject* object, void* of_user, CUhostFn destroy,
                                     unsigned references, unsigned flags) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuUserObjectCreate")) return result;
    if (references == 0 || flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    *object = fake->new_handle<CUuserObject>();
    fake->objects_[*object] = {of_user, destroy, references};
    return CUDA_SUCCESS;
  }
  static CUresult cuUserObjectRelease(CUuserObject object, unsigned references) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuUserObjectRelease")) return result;
    if (!fake->objects_.contains(object) || references != 1) return CUDA_ERROR_INVALID_VALUE;
    fake->release_objects({object});
    return CUDA_SUCCESS;
  }
  // Of moved references alone.
  static CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject object, unsigned references,
                                          unsigned flags) {
    const std::lock_guard lock(fake->mutex_);
    if (const CUresult result = fake->enter("cuGraphRetainUserObject")) return result;
    const auto found = fake->graphs_.find(graph);
    if (found == fake->graphs_.end() || !fake->objects_.contains(object) || references != 1 ||
        flags != CU_GRAPH_USER_OBJECT_MOVE) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    found->second.objects.push_back(object);
    return CUDA_SUCCESS;
  }
};

void fill_graph_calls(DriverApi& api) {
#define FILL(symbol) api.symbol = &FakeGraphCalls::symbol;
  FILL(cuStreamBeginCapture_v2)
  FILL(cuStreamEndCapture)
  FILL(cuStreamGetCaptureInfo_v2)
  FILL(cuStreamUpdateCaptureDependencies)
  FILL(cuGraphGetNodes)
  FILL(cuGraphNodeGetType)
  FILL(cuGraphKernelNodeGetParams_v2)
  FILL(cuGraphInstantiateWithFlags)
  FILL(cuGraphNodeSetEnabled)
  FILL(cuGraphNodeGetEnabled)
  FILL(cuGraphLaunch)
  FILL(cuGraphExecDestroy)
  FILL(cuGraphDestroy)
  FILL(cuUserObjectCreate)
  FILL(cuUserObjectRelease)
  FILL(cuGraphRetainUserObject)
#undef FILL
}

}  // namespace pertoken::testing
