// The Python module: what this build was made from. The operations register themselves in ops/schemas.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build_info.h"  // written by setup.py
#include "cpu/simd.h"

#if defined(__clang__)
#define FASTMETA_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FASTMETA_COMPILER "gcc " __VERSION__
#else
#define FASTMETA_COMPILER "unknown"
#endif

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
            {"compiler", FASTMETA_COMPILER},
        };
      },
      "What the native libraries were compiled from: torch, cuda, cuda_archs, cuda_absent, cpu_features, compiler.");
}
