#pragma once

#include <cstdint>

#include "dcls/construct.hpp"

namespace dcls::cuda {

/// Launchers for one number of dimensions; each is instantiated in a .cu file of its own.
template <int D>
void launch_construct(const ConstructArgs& args, void* kernel, const Execution& where);
template <int D>
void launch_construct_backward(const ConstructArgs& args, const void* grad_kernel,
                               const ConstructGrads& grads, const Execution& where);
template <int D>
void launch_construct_support(const ConstructArgs& args, std::uint8_t* support,
                              const Execution& where);

}  // namespace dcls::cuda
