#pragma once

// The CPU back end as the framework-free library sees it: validated arguments in, threads inside.

#include <memory>

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"
#include "dcls/delay.hpp"
#include "dcls/im2col.hpp"
#include "dcls/layer.hpp"

namespace dcls::cpu {

/// Writes the kernel and the support; either may be null.
void construct(const ConstructArgs& args, void* kernel, std::uint8_t* support, int num_threads);
void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, int num_threads);

/// Whether the images of a batch take the place of the columns, in vectors of so many bytes.
bool batch_as_columns(const ConvArgs& args, std::int64_t vector_bytes);
/// Bytes of the vectors of a convolution on this processor. Of 16 bytes, two count as one.
std::int64_t vector_bytes();
void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, int num_threads);
/// The forward pass in two steps: the kernel's lists, null if there is no input, and the rest.
class PlannedConv;
std::shared_ptr<const PlannedConv> prepare_conv(const ConvArgs& args, const void* kernel,
                                                int num_threads);
void prepared_conv(const ConvArgs& args, const PlannedConv* planned, const void* input,
                   const void* bias, void* output, int num_threads);
void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, int num_threads);
void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, int num_threads);
void direct_conv_backward_bias(const ConvArgs& args, const void* grad_output, void* grad_bias,
                               int num_threads);

std::size_t layer_saved(const LayerArgs& args);
void layer_forward(const LayerArgs& args, const void* input, const void* bias, void* output,
                   void* saved, int num_threads);
void layer_backward(const LayerArgs& args, const void* grad_output, const void* input,
                    const LayerGrads& grads, const void* saved, int num_threads);

void im2col(const Im2colArgs& args, void* columns, int num_threads);
void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     int num_threads);
void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, int num_threads);

void delay_step(const DelayPlan& plan, const DelayTensors& tensors, int num_threads);

}  // namespace dcls::cpu
