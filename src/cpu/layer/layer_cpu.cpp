// A whole layer on the CPU: the families' own functions, one after the other, with what lies
// between them in memory of the call.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/conv_geometry.hpp"
#include "core/dispatch.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

/// What `saved` holds: the dense kernel in the convolution's dtype, then its support.
struct Saved {
  std::int64_t cells;
  std::size_t kernel_bytes;  ///< rounded up

  explicit Saved(const LayerArgs& args) : cells(args.construct.rows) {
    for (int d = 0; d < args.construct.ndim; ++d) cells *= args.construct.size[d];
    kernel_bytes =
        (static_cast<std::size_t>(cells) * storage_bytes(args.conv.dtype) + 255) / 256 * 256;
  }
};

/// Values of float32 whose copy in 16 bits the convolution reads, or the other way round.
template <typename From, typename To>
void convert(const From* from, To* to, std::int64_t count, int num_threads) {
  constexpr double kWork = 2;  // nanoseconds of a value
  parallel_for(count, share(count, kWork, num_threads),
               [=](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   numeric::store(to + i, numeric::load(from[i]));
                 }
               });
}

bool is_mixed(const LayerArgs& args) { return args.construct.dtype != args.conv.dtype; }

std::unique_ptr<float[]> new_values(std::int64_t count) {
  return std::unique_ptr<float[]>(new float[static_cast<std::size_t>(count)]);
}

}  // namespace

std::size_t layer_saved(const LayerArgs& args) {
  const Saved saved(args);
  const std::size_t support = args.for_parameters ? static_cast<std::size_t>(saved.cells) : 0;
  return saved.kernel_bytes + (support + 255) / 256 * 256;
}

void layer_forward(const LayerArgs& args, const void* input, const void* bias, void* output,
                   void* saved, int num_threads) {
  const Saved layout(args);
  std::uint8_t* support = nullptr;
  if (args.for_parameters) support = static_cast<std::uint8_t*>(saved) + layout.kernel_bytes;
  if (!is_mixed(args)) {
    construct(args.construct, saved, support, num_threads);
  } else {
    const auto kernel = new_values(layout.cells);
    construct(args.construct, kernel.get(), support, num_threads);
    dispatch_dtype(args.conv.dtype, [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      if constexpr (sizeof(Storage) == 2) {
        convert(kernel.get(), static_cast<Storage*>(saved), layout.cells, num_threads);
      }
    });
  }
  if (!geometry::no_output(args.conv)) {
    direct_conv(args.conv, input, saved, bias, output, num_threads);
  }
}

void layer_backward(const LayerArgs& args, const void* grad_output, const void* input,
                    const LayerGrads& grads, const void* saved, int num_threads) {
  const Saved layout(args);
  if (grads.input != nullptr && !geometry::no_input(args.conv)) {
    direct_conv_backward_input(args.conv, grad_output, saved, grads.input, num_threads);
  }
  if (grads.bias != nullptr) {
    direct_conv_backward_bias(args.conv, grad_output, grads.bias, num_threads);
  }
  const ConstructGrads of_elements{grads.weight, grads.position, grads.sigma};
  if (of_elements.weight == nullptr && of_elements.position == nullptr &&
      of_elements.sigma == nullptr) {
    return;
  }
  if (args.construct.rows == 0 || args.construct.elements == 0) return;
  const std::uint8_t* const support = static_cast<const std::uint8_t*>(saved) + layout.kernel_bytes;
  const std::unique_ptr<std::byte[]> grad_kernel(new std::byte[layout.kernel_bytes]);
  direct_conv_backward_kernel(args.conv, grad_output, input, support, grad_kernel.get(),
                              num_threads);
  if (!is_mixed(args)) {
    return construct_backward(args.construct, grad_kernel.get(), of_elements, num_threads);
  }
  const auto wide = new_values(layout.cells);
  dispatch_dtype(args.conv.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    if constexpr (sizeof(Storage) == 2) {
      convert(reinterpret_cast<const Storage*>(grad_kernel.get()), wide.get(), layout.cells,
              num_threads);
    }
  });
  construct_backward(args.construct, wide.get(), of_elements, num_threads);
}

}  // namespace dcls::cpu
