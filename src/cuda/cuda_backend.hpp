#pragma once

// The CUDA back end as the framework-free library sees it. Without CUDA, src/cuda/cuda_stub.cpp
// stands in, and says so when called.

#include <cstdint>
#include <string>
#include <vector>

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"
#include "dcls/im2col.hpp"
#include "dcls/layer.hpp"
#include "dcls/runtime.hpp"

namespace dcls::cuda {

bool compiled();
std::string toolkit_version();
std::vector<std::string> architectures();
CudaStatus status();

void construct(const ConstructArgs& args, void* kernel, const Execution& where);
void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, const Execution& where);
void construct_support(const ConstructArgs& args, std::uint8_t* support, const Execution& where);

std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass, const Execution& where);
void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, void* workspace, const Execution& where);
void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, void* workspace, const Execution& where);
void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, void* workspace,
                                 const Execution& where);

std::size_t layer_saved(const LayerArgs& args, const Execution& where);
std::size_t layer_workspace(const LayerArgs& args, LayerPass pass, const Execution& where);
void layer_forward(const LayerArgs& args, const void* input, const void* bias, void* output,
                   void* saved, void* workspace, const Execution& where);
void layer_backward(const LayerArgs& args, const void* grad_output, const void* input,
                    const LayerGrads& grads, const void* saved, void* workspace,
                    const Execution& where);

std::int64_t im2col_workspace(const Im2colArgs& args);
void im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where);
void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     void* workspace, const Execution& where);
void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, void* workspace, const Execution& where);

}  // namespace dcls::cuda
