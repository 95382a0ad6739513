#pragma once

// The CUDA back end as the framework-free library sees it. Without CUDA, src/cuda/stub.cpp stands
// in, and says so when called.

#include <cstdint>
#include <string>
#include <vector>

#include "dcls/construct.hpp"
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

}  // namespace dcls::cuda
