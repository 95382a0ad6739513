#pragma once

// The CPU back end as the framework-free library sees it: validated arguments in, threads inside.

#include "dcls/construct.hpp"

namespace dcls::cpu {

void construct(const ConstructArgs& args, void* kernel, int num_threads);
void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, int num_threads);
void construct_support(const ConstructArgs& args, std::uint8_t* support, int num_threads);

}  // namespace dcls::cpu
