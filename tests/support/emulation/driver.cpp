// Runs launchers of csrc/kernels.h, the CUDA half on emulated blocks or, built with FASTMETA_CPU, the CPU half on four
// threads: driver IN OUT
//
// IN holds calls, OUT the same bytes of every buffer after its call. All numbers are little-endian int64:
//
//   call:    name (32 bytes, zero-padded), struct size, number of buffers, number of pointers,
//            the args struct of the launcher, then
//   pointer: where it stands (a buffer, or -1 for the struct), offset there, buffer, byte offset in the buffer
//   buffer:  size, bytes
//
// Each buffer is an allocation of its own, on a 64-byte boundary as on the device: AddressSanitizer sees every access
// outside.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../../csrc/kernels.h"
#ifdef FASTMETA_CPU
#include <thread>

#include "../../../csrc/cpu/parallel.h"
#else
#include "cuda_runtime.h"
#endif

namespace {

int64_t read_int(std::istream& in) {
  int64_t x = 0;
  in.read(reinterpret_cast<char*>(&x), sizeof(x));
  return x;
}

struct Buffer {
  char* data;
  int64_t size;
};

Buffer read_buffer(std::istream& in) {
  const int64_t size = read_int(in);
  void* data = nullptr;
  if (posix_memalign(&data, 64, static_cast<size_t>(size)) != 0) std::abort();
  in.read(static_cast<char*>(data), size);
  return {static_cast<char*>(data), size};
}

template <class Args>
void call(void (*launcher)(const Args&, void*), const std::vector<char>& bytes) {
  if (bytes.size() != sizeof(Args)) throw std::runtime_error("the struct of the test has another size");
  Args args;
  std::memcpy(&args, bytes.data(), sizeof(Args));
  launcher(args, nullptr);
}

#ifdef FASTMETA_CPU
template <class Args>
void call(void (*launcher)(const Args&), const std::vector<char>& bytes) {
  if (bytes.size() != sizeof(Args)) throw std::runtime_error("the struct of the test has another size");
  Args args;
  std::memcpy(&args, bytes.data(), sizeof(Args));
  launcher(args);
}

// Whatever the grain: small batches are shared out too.
void on_four_threads(int64_t n, int64_t, fastmeta::cpu::RangeBody body, void* context) {
  std::vector<std::thread> threads;
  const int64_t piece = (n + 3) / 4;
  for (int64_t begin = 0; begin < n; begin += piece)
    threads.emplace_back(body, begin, begin + piece < n ? begin + piece : n, context);
  for (std::thread& thread : threads) thread.join();
}
#define FASTMETA_HALF cpu
#else
#define FASTMETA_HALF cuda
#endif

void run(const std::string& name, const std::vector<char>& bytes) {
#define X(launcher, Args) \
  if (name == #launcher) return call<fastmeta::Args>(fastmeta::FASTMETA_HALF::launcher, bytes);
#ifdef FASTMETA_PLANT_RACE  // the planted races need no other kernels
  X(row_dot, RowDotArgs)
  X(instance_loss, InstanceLossArgs)
#else
  FASTMETA_LAUNCHERS(X)
#endif
#undef X
  throw std::runtime_error("no launcher " + name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
#ifdef FASTMETA_CPU
  fastmeta::cpu::parallel_for = on_four_threads;
#endif
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  char name[33] = {};
  while (in.read(name, 32)) {
    std::vector<char> args(static_cast<size_t>(read_int(in)));
    const int64_t buffer_count = read_int(in), pointer_count = read_int(in);
    in.read(args.data(), static_cast<std::streamsize>(args.size()));
    std::vector<int64_t> pointers;
    for (int64_t k = 0; k < 4 * pointer_count; ++k) pointers.push_back(read_int(in));
    std::vector<Buffer> buffers;
    for (int64_t k = 0; k < buffer_count; ++k) buffers.push_back(read_buffer(in));
    for (size_t k = 0; k < pointers.size(); k += 4) {
      const int64_t* pointer = &pointers[k];
      char* holder = pointer[0] < 0 ? args.data() : buffers[static_cast<size_t>(pointer[0])].data;
      const char* p = buffers[static_cast<size_t>(pointer[2])].data + pointer[3];
      std::memcpy(holder + pointer[1], &p, sizeof(p));
    }
    try {
      run(name, args);
    } catch (const std::exception& error) {
#ifdef FASTMETA_CPU
      const bool left = false;
#else
      const bool left = cudaGetLastError() != cudaSuccess;
#endif
      std::fprintf(stderr, "%s: %s%s\n", name, error.what(), left ? ", left for the next launch to find" : "");
      return 1;
    }
    for (const Buffer& b : buffers) {
      out.write(b.data, b.size);
      std::free(b.data);
    }
  }
  return 0;
}
