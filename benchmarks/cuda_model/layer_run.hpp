// A training step of a layer, as the library launches it.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/dispatch.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "cuda/cuda_backend.hpp"
#include "launches.hpp"
#include "layers.hpp"

namespace dcls::model {

using host_cuda::Guard;
using host_cuda::GuardedBuffer;

inline std::int64_t product(const std::vector<std::int64_t>& values) {
  std::int64_t result = 1;
  for (const std::int64_t v : values) result *= v;
  return result;
}

/// The parameters of a layer: positions spread over the kernel, where training ends.
struct Parameters {
  GuardedBuffer<float> weight, position, sigma;

  Parameters(const Layer& layer, std::int64_t rows)
      : weight(draw(rows, layer, 1,
                    [](auto& random, int) { return std::normal_distribution<float>()(random); }),
               "weight", Guard::kBegin),
        position(draw(rows, layer, layer.ndim,
                      [&](auto& random, int d) {
                        const auto half =
                            static_cast<float>(layer.kernel[static_cast<std::size_t>(d)] - 1) / 2;
                        return std::uniform_real_distribution<float>(-half, half)(random);
                      }),
                 "position", Guard::kBegin),
        sigma(draw(rows, layer, layer.version == Version::kGauss ? layer.ndim : 0,
                   [](auto&, int) { return 0.23f; }),
              "sigma", Guard::kBegin) {}

  const float* widths() const { return sigma.size() > 0 ? sigma.data() : nullptr; }

 private:
  template <typename One>
  static std::vector<float> draw(std::int64_t rows, const Layer& layer, int axes, const One& one) {
    std::mt19937 random(static_cast<unsigned>(axes));
    std::vector<float> result;
    for (int d = 0; d < axes; ++d) {
      for (std::int64_t i = 0; i < rows * layer.elements; ++i) result.push_back(one(random, d));
    }
    return result;
  }
};

inline double sigma_min(const Layer& layer) {
  return layer.version == Version::kGauss ? 0.27 : 0.0;
}

/// The values that a step multiplies.
struct Operands {
  const char* name;
  DType dtype;
  bool allow_tf32;
  double most;  ///< the difference between machine code and host
};
inline constexpr Operands kOperands[] = {{"float32", DType::kFloat32, false, 1e-5},
                                         {"tf32", DType::kFloat32, true, 1e-5},
                                         {"bfloat16", DType::kBFloat16, false, 1e-2}};

inline LayerArgs layer_args(const Layer& layer, const Operands& operands, Layout layout) {
  LayerArgs args;
  ConvArgs& conv = args.conv;
  ConstructArgs& construct = args.construct;
  conv.dtype = operands.dtype;
  conv.allow_tf32 = operands.allow_tf32;
  conv.layout = layout;
  conv.ndim = construct.ndim = layer.ndim;
  conv.batch = layer.batch;
  conv.in_channels = layer.in_channels;
  conv.out_channels = layer.out_channels;
  conv.groups = layer.groups;
  construct.version = layer.version;
  construct.dtype = DType::kFloat32;
  construct.rows = layer.out_channels * layer.in_channels / layer.groups;
  construct.elements = layer.elements;
  construct.sigma_min = sigma_min(layer);
  for (std::size_t d = 0; d < layer.size.size(); ++d) {
    conv.input_size[d] = conv.output_size[d] = layer.size[d];
    conv.kernel_size[d] = construct.size[d] = layer.kernel[d];
    conv.padding[d] = layer.kernel[d] / 2;
  }
  args.for_input = args.for_parameters = true;
  return args;
}

/// Whether tensor cores take a layer in TF32. The functions for its parts launch the same kernels.
inline bool has_tf32(const Layer& layer, Layout layout) {
  const ConvArgs conv = layer_args(layer, kOperands[1], layout).conv;
  return layer.kind == Layer::Kind::kLayer && cuda::toeplitz_covers(conv) && cuda::tf32_pays(conv);
}

/// A tensor of the convolution: zeros in memory that is taken when it is touched.
struct Tensor {
  DType dtype;
  std::size_t size;
  GuardedBuffer<unsigned char> memory;

  Tensor(DType dtype_, std::int64_t size_, const char* name)
      : dtype(dtype_),
        size(static_cast<std::size_t>(size_)),
        memory(GuardedBuffer<unsigned char>::sparse(size * storage_bytes(dtype_), name,
                                                    Guard::kBegin)) {}
  void* data() { return memory.data(); }

  void assign(const std::vector<double>& from) {
    for (std::size_t i = 0; i < size; ++i) {
      const auto value = static_cast<float>(from[i]);
      if (dtype == DType::kFloat32) {
        reinterpret_cast<float*>(data())[i] = value;
      } else {
        reinterpret_cast<std::uint16_t*>(data())[i] = cuda_sass::float_to_bfloat(value);
      }
    }
  }
  void fill(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> one;
    std::vector<double> drawn(size);
    for (double& value : drawn) value = one(random);
    assign(drawn);
  }
  std::vector<double> values() {
    std::vector<double> result(size);
    for (std::size_t i = 0; i < size; ++i) {
      result[i] = dtype == DType::kFloat32
                      ? reinterpret_cast<float*>(data())[i]
                      : cuda_sass::bfloat_to_float(reinterpret_cast<std::uint16_t*>(data())[i]);
    }
    return result;
  }
};

inline GuardedBuffer<unsigned char> bytes(std::size_t count, const char* name) {
  return GuardedBuffer<unsigned char>::sparse(count, name, Guard::kBegin);
}

/// Members of JSON: what a convolution moves, and how many products it has.
inline std::string bytes_and_products(const LayerArgs& args, const Layer& layer,
                                      std::size_t input_bytes, std::size_t output_bytes) {
  std::vector<float> kernel(static_cast<std::size_t>(args.construct.rows * product(layer.kernel)));
  dcls::construct(args.construct, kernel.data(), Execution{});
  std::int64_t cells = 0;
  for (const float cell : kernel) cells += cell != 0.0f ? 1 : 0;
  return "\"input_bytes\": " + std::to_string(input_bytes) +
         ", \"output_bytes\": " + std::to_string(output_bytes) +
         ", \"products\": " + std::to_string(cells * layer.batch * product(layer.size));
}

/// What the steps of a layer that builds its kernel have in common.
class StepRun {
 public:
  std::string facts() const {
    return bytes_and_products(args_, layer_, input_.memory.size(), output_.memory.size());
  }

  void fill() {
    unsigned seed = 0;
    for (Tensor* tensor : {&input_, &grad_output_, &bias_}) tensor->fill(++seed);
  }

 protected:
  StepRun(const Layer& layer, const Operands& operands, Layout layout)
      : layer_(layer),
        args_(layer_args(layer, operands, layout)),
        parameters_(layer, args_.construct.rows),
        points_(layer.batch * product(layer.size)),
        input_(operands.dtype, layer.in_channels * points_, "input"),
        grad_input_(operands.dtype, layer.in_channels * points_, "grad_input"),
        output_(operands.dtype, layer.out_channels * points_, "output"),
        grad_output_(operands.dtype, layer.out_channels * points_, "grad_output"),
        bias_(operands.dtype, layer.out_channels, "bias"),
        grad_weight_(parameters_.weight.size(), "grad_weight", Guard::kBegin),
        grad_position_(parameters_.position.size(), "grad_position", Guard::kBegin),
        grad_sigma_(parameters_.sigma.size(), "grad_sigma", Guard::kBegin) {
    args_.construct.weight = parameters_.weight.data();
    args_.construct.position = parameters_.position.data();
    args_.construct.sigma = parameters_.widths();
  }

  /// With the gradients of the parameters: LayerGrads, ConstructGrads.
  template <typename Grads>
  Grads grads() {
    Grads result;
    result.weight = grad_weight_.data();
    result.position = grad_position_.data();
    result.sigma = grad_sigma_.size() > 0 ? grad_sigma_.data() : nullptr;
    return result;
  }

  /// The values of some tensors, and the gradients of the parameters.
  std::vector<std::vector<double>> results_of(const std::vector<Tensor*>& tensors) {
    std::vector<std::vector<double>> all;
    for (Tensor* tensor : tensors) all.push_back(tensor->values());
    for (const auto* grad : {&grad_weight_, &grad_position_, &grad_sigma_}) {
      all.emplace_back(grad->begin(), grad->end());
    }
    return all;
  }

  static Execution on_cuda() {
    Execution where;
    where.device = DeviceType::kCuda;
    return where;
  }

  Layer layer_;
  LayerArgs args_;
  Parameters parameters_;
  std::int64_t points_;
  Tensor input_, grad_input_, output_, grad_output_, bias_;
  GuardedBuffer<float> grad_weight_, grad_position_, grad_sigma_;
};

/// By the operator of a whole layer.
class LayerRun : public StepRun {
 public:
  LayerRun(const Layer& layer, const Operands& operands, Layout layout)
      : StepRun(layer, operands, layout),
        grad_bias_(operands.dtype, layer.out_channels, "grad_bias") {}

  void run(Launches& launches) {
    const Execution where = on_cuda();
    auto saved = bytes(cuda::layer_saved(args_, where), "saved");
    auto forward = bytes(cuda::layer_workspace(args_, LayerPass::kForward, where), "workspace");
    auto backward = bytes(cuda::layer_workspace(args_, LayerPass::kBackward, where), "workspace");
    launches.begin_pass("forward");
    cuda::layer_forward(args_, input_.data(), bias_.data(), output_.data(), saved.data(),
                        forward.data(), where);
    auto all = grads<LayerGrads>();
    all.input = grad_input_.data();
    all.bias = grad_bias_.data();
    launches.begin_pass("backward");
    cuda::layer_backward(args_, grad_output_.data(), input_.data(), all, saved.data(),
                         backward.data(), where);
  }

  /// Output and gradients.
  std::vector<std::vector<double>> results() {
    return results_of({&output_, &grad_input_, &grad_bias_});
  }

 private:
  Tensor grad_bias_;
};

/// The module that samples its input: the columns, their gradients, and what is made of these.
class Im2colRun {
 public:
  Im2colRun(const Layer& layer, DType dtype)
      : parameters_(layer, layer.in_channels),
        input_(dtype, layer.batch * layer.in_channels * product(layer.size), "input"),
        grad_input_(dtype, static_cast<std::int64_t>(input_.size), "grad_input"),
        columns_(dtype, static_cast<std::int64_t>(input_.size) * layer.elements, "columns"),
        grad_columns_(dtype, static_cast<std::int64_t>(columns_.size), "grad_columns"),
        sums_(std::vector<float>(static_cast<std::size_t>(layer.in_channels * layer.elements *
                                                          (1 + 2 * layer.ndim))),
              "sums", Guard::kBegin),
        grad_position_(parameters_.position.size(), "grad_position", Guard::kBegin),
        grad_sigma_(parameters_.sigma.size(), "grad_sigma", Guard::kBegin) {
    args_.version = layer.version;
    args_.dtype = dtype;
    args_.ndim = layer.ndim;
    for (std::size_t d = 0; d < layer.size.size(); ++d) {
      args_.size[d] = layer.kernel[d];
      args_.padding[d] = layer.kernel[d] / 2;
      args_.input_size[d] = args_.output_size[d] = layer.size[d];
    }
    args_.batch = layer.batch;
    args_.channels = layer.in_channels;
    args_.elements = layer.elements;
    args_.channel_stride = product(layer.size);
    args_.batch_stride = args_.channel_stride * args_.channels;
    args_.sigma_min = sigma_min(layer);
    args_.input = input_.data();
    args_.position = parameters_.position.data();
    args_.sigma = parameters_.widths();
  }

  std::string facts() const {
    return "\"input_bytes\": " + std::to_string(input_.memory.size()) +
           ", \"output_bytes\": " + std::to_string(columns_.memory.size()) + ", \"products\": 0";
  }

  void fill() {
    input_.fill(1);
    grad_columns_.fill(2);
  }

  void run(Launches& launches) {
    Execution where;
    where.device = DeviceType::kCuda;
    auto workspace = bytes(static_cast<std::size_t>(cuda::im2col_workspace(args_)), "workspace");
    launches.begin_pass("forward");
    cuda::im2col(args_, columns_.data(), workspace.data(), where);
    Im2colGrads grads;
    grads.input = grad_input_.data();
    grads.batch_stride = args_.batch_stride;
    grads.channel_stride = args_.channel_stride;
    grads.sums = sums_.data();
    grads.sigma = grad_sigma_.size() > 0;
    launches.begin_pass("backward");
    cuda::im2col_backward(args_, grad_columns_.data(), grads, workspace.data(), where);
    launches.begin_pass("finish");
    cuda::im2col_finish(args_, sums_.data(), 1, grad_position_.data(),
                        grads.sigma ? grad_sigma_.data() : nullptr, workspace.data(), where);
  }

  std::vector<std::vector<double>> results() {
    std::vector<std::vector<double>> all = {columns_.values(), grad_input_.values()};
    for (const auto* grad : {&grad_position_, &grad_sigma_}) {
      all.emplace_back(grad->begin(), grad->end());
    }
    return all;
  }

 private:
  Im2colArgs args_;
  Parameters parameters_;
  Tensor input_, grad_input_, columns_, grad_columns_;
  GuardedBuffer<float> sums_, grad_position_, grad_sigma_;
};

}  // namespace dcls::model
