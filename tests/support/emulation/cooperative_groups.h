// Thread block clusters on the host: the part of <cooperative_groups.h> that the kernels use, on cuda_runtime.h's
// blocks. A cluster's barrier orders memory between all its threads, and nothing else does.
#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct cluster_group {
  void sync() const { emulation::self.block->cluster->barrier.arrive_and_wait(); }
  void barrier_arrive() const { emulation::self.arrived.emplace(emulation::self.block->cluster->barrier.arrive()); }
  void barrier_wait() const { emulation::self.block->cluster->barrier.wait(std::move(*emulation::self.arrived)); }

  // The same place in the shared memory of block `rank`
  template <class T>
  T* map_shared_rank(T* here, unsigned rank) const {
    const emulation::Block& block = *emulation::self.block;
    const auto offset = reinterpret_cast<unsigned char*>(here) - block.shared.get();
    return reinterpret_cast<T*>(block.cluster->blocks[rank]->shared.get() + offset);
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
