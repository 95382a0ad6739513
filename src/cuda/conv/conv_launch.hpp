#pragma once

#include <cstdint>

#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_tile_plan.hpp"
#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Launchers for lines (one spatial axis) and for planes; each is instantiated in a .cu of its own.
/// The forward pass, or the gradient of the input: `source` is what it reads.
template <bool kLine>
void launch_conv_forward(const ConvArgs& args, ConvPass pass, const void* source,
                         const void* kernel, const void* bias, void* target, void* workspace,
                         const Execution& where);
template <bool kLine>
void launch_conv_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                        const std::uint8_t* support, void* grad_kernel, void* workspace,
                        const Execution& where);

/// The sums of launch_conv_kernel without its last launch: `partial` and `bias` as below, and
/// `lists` is memory of conv_workspace().lists(). plan.splits > 0.
template <bool kLine>
void launch_conv_sums(const ConvPlan& plan, DType dtype, const std::uint8_t* support, void* lists,
                      const void* grad_output, const void* input, void* partial, void* bias,
                      const Execution& where);

/// What of these is one launch each, with lists that are there.
template <bool kLine>
void launch_conv_listed(const ConvPlan& plan, ConvPass pass, DType dtype, const ConvLists& lists,
                        const void* source, const void* bias, void* target, const Execution& where);
/// `partial` and `bias`, sums for each split, are those of conv_kernel_partial. plan.splits > 0.
template <bool kLine>
void launch_conv_partial(const ConvPlan& plan, DType dtype, const ConvLists& lists,
                         const void* grad_output, const void* input, void* partial, void* bias,
                         const Execution& where);

}  // namespace dcls::cuda
