// A training step by the functions for its parts, as dcls.functional calls them.
#pragma once

#include <string>
#include <vector>

#include "layer_run.hpp"

namespace dcls::model {

class PartsRun : public StepRun {
 public:
  PartsRun(const Layer& layer, const Operands& operands, Layout layout)
      : StepRun(layer, operands, layout),
        cells_(args_.construct.rows * product(layer.kernel)),
        kernel_(operands.dtype, cells_, "kernel"),
        grad_kernel_(operands.dtype, cells_, "grad_kernel"),
        built_(DType::kFloat32, cells_, "built kernel"),
        grad_built_(DType::kFloat32, cells_, "gradient of the built kernel") {}

  void run(Launches& launches) {
    const Execution where = on_cuda();
    launches.begin_pass("forward");
    cuda::construct(args_.construct, built_.data(), where);
    kernel_.assign(built_.values());
    auto support = bytes(static_cast<std::size_t>(cells_), "support");
    auto forward = workspace(ConvPass::kForward, where);
    cuda::direct_conv(args_.conv, input_.data(), kernel_.data(), bias_.data(), output_.data(),
                      forward.data(), where);
    launches.begin_pass("backward of the input");
    auto backward = workspace(ConvPass::kBackwardInput, where);
    cuda::direct_conv_backward_input(args_.conv, grad_output_.data(), kernel_.data(),
                                     grad_input_.data(), backward.data(), where);
    launches.begin_pass("backward of the kernel");
    cuda::construct_support(args_.construct, support.data(), where);
    auto sums = workspace(ConvPass::kBackwardKernel, where);
    cuda::direct_conv_backward_kernel(args_.conv, grad_output_.data(), input_.data(),
                                      support.data(), grad_kernel_.data(), sums.data(), where);
    grad_built_.assign(grad_kernel_.values());
    cuda::construct_backward(args_.construct, grad_built_.data(), grads<ConstructGrads>(), where);
  }

  std::vector<std::vector<double>> results() {
    return results_of({&output_, &grad_input_, &grad_kernel_});
  }

 private:
  GuardedBuffer<unsigned char> workspace(ConvPass pass, const Execution& where) const {
    return bytes(cuda::direct_conv_workspace(args_.conv, pass, where), "workspace");
  }

  std::int64_t cells_;
  Tensor kernel_, grad_kernel_, built_, grad_built_;
};

}  // namespace dcls::model
