#pragma once

#include <cstdint>

#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Whether the GPU of `where` has the tensor cores that the kernels need: sm_80 and later.
bool has_tensor_cores(const Execution& where);

/// The forward pass, or the gradient of the input, of a problem that toeplitz_covers().
/// Instantiated for each dtype of 16 bits, and for float as TF32, in a .cu of its own.
template <typename Storage>
void launch_toeplitz_forward(const ConvArgs& args, ConvPass pass, const void* source,
                             const void* kernel, const void* bias, void* target,
                             const Execution& where);

/// The gradient of the kernel. `workspace` has toeplitz_kernel_workspace() bytes.
template <typename Storage>
void launch_toeplitz_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                            const std::uint8_t* support, void* grad_kernel, void* workspace,
                            const Execution& where);

/// The part of it that is one launch: `partial` and `bias` are those of toeplitz_kernel_partial.
template <typename Storage>
void launch_toeplitz_partial(const ConvArgs& args, const void* grad_output, const void* input,
                             void* partial, void* bias, const Execution& where);

}  // namespace dcls::cuda
