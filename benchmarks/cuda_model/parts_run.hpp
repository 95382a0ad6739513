// A training step by the functions for its parts, as dcls.functional calls them.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "layer_run.hpp"

namespace dcls::model {

class PartsRun {
 public:
  PartsRun(const Layer& layer, DType dtype, Layout layout)
      : layer_(layer),
        args_(layer_args(layer, dtype, layout)),
        parameters_(layer, args_.construct.rows),
        points_(layer.batch * product(layer.size)),
        cells_(args_.construct.rows * product(layer.kernel)),
        input_(dtype, layer.in_channels * points_, "input"),
        grad_input_(dtype, layer.in_channels * points_, "grad_input"),
        output_(dtype, layer.out_channels * points_, "output"),
        grad_output_(dtype, layer.out_channels * points_, "grad_output"),
        bias_(dtype, layer.out_channels, "bias"),
        kernel_(dtype, cells_, "kernel"),
        grad_kernel_(dtype, cells_, "grad_kernel"),
        built_(DType::kFloat32, cells_, "built kernel"),
        grad_built_(DType::kFloat32, cells_, "gradient of the built kernel"),
        grad_weight_(parameters_.weight.size(), "grad_weight", Guard::kBegin),
        grad_position_(parameters_.position.size(), "grad_position", Guard::kBegin),
        grad_sigma_(parameters_.sigma.size(), "grad_sigma", Guard::kBegin) {
    args_.construct.weight = parameters_.weight.data();
    args_.construct.position = parameters_.position.data();
    args_.construct.sigma = parameters_.widths();
  }

  std::string facts() const {
    return bytes_and_products(args_, layer_, input_.memory.size(), output_.memory.size());
  }

  void fill() {
    unsigned seed = 0;
    for (Tensor* tensor : {&input_, &grad_output_, &bias_}) tensor->fill(++seed);
  }

  void run(Launches& launches) {
    Execution where;
    where.device = DeviceType::kCuda;
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
    ConstructGrads grads;
    grads.weight = grad_weight_.data();
    grads.position = grad_position_.data();
    grads.sigma = grad_sigma_.size() > 0 ? grad_sigma_.data() : nullptr;
    cuda::construct_backward(args_.construct, grad_built_.data(), grads, where);
  }

  std::vector<std::vector<double>> results() {
    std::vector<std::vector<double>> all;
    for (Tensor* tensor : {&output_, &grad_input_, &grad_kernel_}) all.push_back(tensor->values());
    for (const auto* grad : {&grad_weight_, &grad_position_, &grad_sigma_}) {
      all.emplace_back(grad->begin(), grad->end());
    }
    return all;
  }

 private:
  GuardedBuffer<unsigned char> workspace(ConvPass pass, const Execution& where) const {
    return bytes(cuda::direct_conv_workspace(args_.conv, pass, where), "workspace");
  }

  Layer layer_;
  LayerArgs args_;
  Parameters parameters_;
  std::int64_t points_, cells_;
  Tensor input_, grad_input_, output_, grad_output_, bias_, kernel_, grad_kernel_;
  Tensor built_, grad_built_;
  GuardedBuffer<float> grad_weight_, grad_position_, grad_sigma_;
};

}  // namespace dcls::model
