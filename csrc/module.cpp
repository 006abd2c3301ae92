// The Python module: what this build was made from. The operations register themselves in ops.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build_info.h"  // written by setup.py
#include "cpu/simd.h"

PYBIND11_MODULE(_C, m) {
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"torch", FASTMETA_BUILD_TORCH},          // version it was compiled against; runs under any newer one
            {"cuda", FASTMETA_BUILD_CUDA},            // toolkit of the CUDA half, empty without one
            {"cuda_archs", FASTMETA_BUILD_ARCHS},     // architectures compiled, comma-separated
            {"cuda_absent", FASTMETA_BUILD_NO_CUDA},  // why the CUDA half was left out, empty otherwise
            {"cpu_features", FASTMETA_CPU_FEATURES},  // machine codes, picked from at load time
            {"compiler", __VERSION__},
        };
      },
      "What the native libraries were compiled from: torch, cuda, cuda_archs, cuda_absent, cpu_features, compiler.");
}
