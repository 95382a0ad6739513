#pragma once

#include <cstdint>

#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Launchers for lines (one spatial axis) and for planes; each is instantiated in a .cu of its own.
/// The forward pass, or the gradient of the input: `source` is what it reads.
template <bool kLine>
void launch_conv_correlate(const ConvArgs& args, ConvPass pass, const void* source,
                           const void* kernel, const void* bias, void* target, void* workspace,
                           const Execution& where);
template <bool kLine>
void launch_conv_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                        const std::uint8_t* support, void* grad_kernel, void* workspace,
                        const Execution& where);

}  // namespace dcls::cuda
