#pragma once

#include <cstdint>

#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Whether the tensor cores of a compute capability are faster than its other units for a dtype. By
/// the data sheets TF32 is seven times as fast as float32, or more, on GPUs for data centres; on
/// 8.6, 8.9 and 12.0 both have one rate.
inline bool tensor_cores_pay(DType dtype, int major, int minor) {
  if (dtype != DType::kFloat32) return major >= 8;
  return (major == 8 && minor == 0) || major == 9 || major == 10;
}

/// The same of the GPU of `where`.
bool has_tensor_cores(DType dtype, const Execution& where);

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

/// The part of it without the last launch: `partial` and `bias` are those of
/// toeplitz_kernel_partial, and `copies` is memory of channels_first_bytes().
template <typename Storage>
void launch_toeplitz_partial(const ConvArgs& args, const void* grad_output, const void* input,
                             void* partial, void* bias, void* copies, const Execution& where);

}  // namespace dcls::cuda
