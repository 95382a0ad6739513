// A layer run by the CUDA back end on the host.
#pragma once

#include <cstdint>

#include "cuda/cuda_backend.hpp"
#include "cuda_host.hpp"
#include "layer_problem.hpp"

namespace dcls::test {

struct Guarded {
  template <typename T>
  using Buffer = host_cuda::GuardedBuffer<T>;
};

inline Execution on_cuda() {
  Execution where;
  where.device = DeviceType::kCuda;
  return where;
}

/// A layer in device memory.
template <typename Parameter, typename Storage>
struct Device {
  const LayerProblem& problem;
  host_cuda::GuardedBuffer<Parameter> weight, position, sigma, grad_weight, grad_position,
      grad_sigma;
  host_cuda::GuardedBuffer<Storage> input, grad_output, bias, output, grad_input, grad_bias;
  LayerArgs args;

  explicit Device(const LayerProblem& p)
      : problem(p),
        weight(to_storage<Parameter>(p.construct.weight), "weight"),
        position(to_storage<Parameter>(p.construct.position), "position"),
        sigma(to_storage<Parameter>(p.construct.sigma), "sigma"),
        grad_weight(weight.size(), "grad_weight"),
        grad_position(position.size(), "grad_position"),
        grad_sigma(sigma.size(), "grad_sigma"),
        input(p.conv.store<Storage>(p.conv.input, p.conv.args.in_channels), "input"),
        grad_output(p.conv.store<Storage>(p.conv.grad_output, p.conv.args.out_channels),
                    "grad_output"),
        bias(to_storage<Storage>(p.conv.bias), "bias"),
        output(grad_output.size(), "output"),
        grad_input(input.size(), "grad_input"),
        grad_bias(bias.size(), "grad_bias"),
        args(p.args<Parameter, Storage>()) {
    args.construct.weight = weight.data();
    args.construct.position = position.data();
    args.construct.sigma = sigma.size() > 0 ? sigma.data() : nullptr;
  }

  LayerGrads grads(const LayerAsked& asked) {
    LayerGrads g;
    if (asked.input) g.input = grad_input.data();
    if (asked.bias) g.bias = grad_bias.data();
    if (asked.weight) g.weight = grad_weight.data();
    if (asked.position) g.position = grad_position.data();
    if (asked.sigma && sigma.size() > 0) g.sigma = grad_sigma.data();
    return g;
  }

  LayerResults results() const {
    for (const auto* buffer : {&grad_weight, &grad_position, &grad_sigma}) buffer->check();
    for (const auto* buffer : {&output, &grad_input, &grad_bias}) buffer->check();
    return {to_double(output),      to_double(grad_input),    to_double(grad_bias),
            to_double(grad_weight), to_double(grad_position), to_double(grad_sigma)};
  }

  LayerResults run(const LayerAsked& asked = {}) {
    args.for_input = asked.input;
    args.for_parameters = asked.weight || asked.position || asked.sigma;
    const Execution where = on_cuda();
    Workspace<Guarded> saved(cuda::layer_saved(args, where)),
        forward(cuda::layer_workspace(args, LayerPass::kForward, where)),
        backward(cuda::layer_workspace(args, LayerPass::kBackward, where));
    cuda::layer_forward(args, input.data(), bias.data(), output.data(), saved.data(),
                        forward.data(), where);
    cuda::layer_backward(args, grad_output.data(), input.data(), grads(asked), saved.data(),
                         backward.data(), where);
    return results();
  }
};

}  // namespace dcls::test
