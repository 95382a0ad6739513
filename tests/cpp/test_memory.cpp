// Where memory ends: allocations that fail one by one, and sizes that no memory has.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "dcls/conv.hpp"
#include "dcls/im2col.hpp"
#include "dcls/layer.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

/// How many allocations there are until one fails; negative: none does.
std::atomic<long> left{-1};

void* allocate(std::size_t bytes, std::size_t align) {
  if (left.load() >= 0 && left.fetch_sub(1) == 0) throw std::bad_alloc();
  void* const memory = std::aligned_alloc(align, (bytes / align + 1) * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// Those of the library, too.
void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t align) {
  return allocate(bytes, static_cast<std::size_t>(align));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

/// None may fail within a parallel region, where an exception ends the process.
TEST(every_allocation_may_fail) {
  Execution where;
  where.num_threads = 4;
  const ConvArgs dense = conv_args(2, 1024, 1024, 1024, {20, 20}, {17, 17}, {8, 8});
  const ConvArgs strided = conv_args(2, 1024, 1024, 1024, {20, 20}, {17, 17}, {8, 8}, {2, 2});
  const std::vector<float> input(2 * 1024 * 20 * 20, 1), kernel(1024 * 17 * 17, 1);
  std::vector<float> output(input.size()), grad_kernel(kernel.size());
  for (const ConvArgs& args : {dense, strided}) {
    for (int call = 0; call < 4; ++call) {
      long fails = 0;
      for (bool done = false; !done; ++fails) {
        left = fails;
        try {
          if (call == 0) {
            direct_conv(args, input.data(), kernel.data(), nullptr, output.data(), nullptr, where);
          } else if (call == 1) {
            direct_conv_backward_input(args, input.data(), kernel.data(), output.data(), nullptr,
                                       where);
          } else if (call == 2) {
            direct_conv_backward_kernel(args, input.data(), input.data(), nullptr,
                                        grad_kernel.data(), nullptr, where);
          } else {
            PreparedConv(args, kernel.data(), where);
          }
          done = left.load() >= 0;  // it needed fewer
        } catch (const std::bad_alloc&) {
        }
        left = -1;
      }
      CHECK(fails > 10);
    }
  }
}

TEST(scratch_that_no_machine_has) {
  float values[] = {0, 0, 0, 0};
  std::vector<float> kernel(30 * 16 * 33, 1);
  ConvArgs far = conv_args(1, 1, 1, 1, {1 << 28, 16, 2}, {30, 16, 33}, {});
  far.any_output_size = true;
  far.output_size[0] = far.output_size[1] = 1;
  far.output_size[2] = 1 << 29;
  far.dilation[0] = 9256395;
  far.dilation[2] = 1 << 24;
  far.padding[2] = (1 << 29) - 1;
  CHECK_THROWS(std::bad_alloc, "",
               direct_conv(far, values, kernel.data(), nullptr, values, nullptr, {}));

  Im2colArgs args;
  args.version = Version::kV1;
  args.ndim = 2;
  args.any_output_size = true;
  args.size[0] = 1;
  args.size[1] = args.stride[1] = 1 << 24;
  args.input_size[0] = args.output_size[1] = 1 << 20;
  args.input_size[1] = args.output_size[0] = 1;
  args.batch = args.channels = args.elements = 1;
  args.input = args.position = values;
  Im2colGrads grads;
  grads.input = values;
  CHECK_THROWS(std::bad_alloc, "", im2col_backward(args, values, grads, nullptr, {}));
  CHECK_THROWS(std::bad_alloc, "", im2col(args, values, nullptr, {}));
}

CHECK_MAIN()
