// Argument checks of a whole layer and choice of the back end. Compiled without nvcc.

#include "dcls/layer.hpp"

#include "api/check_args.hpp"
#include "core/checks.hpp"
#include "core/conv_geometry.hpp"
#include "cpu/cpu_backend.hpp"
#include "cuda/cuda_backend.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {

LayerArgs api::checked_layer(LayerArgs args, const Execution& where) {
  using validate::require;
  const ConvArgs& conv = args.conv;
  args.construct = checked_construct(args.construct, where);
  const ConstructArgs& construct = args.construct;
  check_conv(conv, where);
  const bool narrow = conv.dtype == DType::kFloat16 || conv.dtype == DType::kBFloat16;
  require(construct.dtype == conv.dtype || (narrow && construct.dtype == DType::kFloat32),
          "construct.dtype must be that of conv, or kFloat32 where that has 16 bits");
  // Neither product overflows: both have been checked.
  std::int64_t built = construct.rows;
  for (int d = 0; d < construct.ndim; ++d) built *= construct.size[d];
  std::int64_t cells = conv.out_channels * (conv.in_channels / conv.groups);
  for (int d = 0; d < conv.ndim; ++d) cells *= conv.kernel_size[d];
  require(built == cells, "construct must build the ", cells, " cells of conv's kernel, not ",
          built);
  const std::int64_t pairs = conv.out_channels * (conv.in_channels / conv.groups);
  require(pairs == 0 || construct.rows % pairs == 0, "construct.rows must be a multiple of the ",
          pairs, " pairs of channels, got ", construct.rows);
  return args;
}

namespace {

void check_workspace(const LayerArgs& args, LayerPass pass, const void* workspace,
                     const Execution& where) {
  if (where.device == DeviceType::kCpu || workspace != nullptr) return;
  validate::require(layer_workspace(args, pass, where) == 0,
                    "workspace must not be null: see layer_workspace");
}

}  // namespace

std::size_t layer_saved(const LayerArgs& given, const Execution& where) {
  const LayerArgs args = api::checked_layer(given, where);
  return where.device == DeviceType::kCuda ? cuda::layer_saved(args, where)
                                           : cpu::layer_saved(args);
}

std::size_t layer_workspace(const LayerArgs& given, LayerPass pass, const Execution& where) {
  const LayerArgs args = api::checked_layer(given, where);
  validate::check_enum("pass", static_cast<int>(pass), 2);
  return where.device == DeviceType::kCuda ? cuda::layer_workspace(args, pass, where) : 0;
}

void layer_forward(const LayerArgs& given, const void* input, const void* bias, void* output,
                   void* saved, void* workspace, const Execution& where) {
  using validate::require;
  const LayerArgs args = api::checked_layer(given, where);
  require(input != nullptr || geometry::no_input(args.conv), "input must not be null");
  require(output != nullptr || geometry::no_output(args.conv), "output must not be null");
  require(saved != nullptr || layer_saved(args, where) == 0, "saved must not be null");
  check_workspace(args, LayerPass::kForward, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::layer_forward(args, input, bias, output, saved, workspace, where);
  } else {
    cpu::layer_forward(args, input, bias, output, saved, where.num_threads);
  }
}

void layer_backward(const LayerArgs& given, const void* grad_output, const void* input,
                    const LayerGrads& grads, const void* saved, void* workspace,
                    const Execution& where) {
  using validate::require;
  const LayerArgs args = api::checked_layer(given, where);
  require(grads.input == nullptr || args.for_input, "grads.input must be null without for_input");
  const bool of_elements =
      grads.weight != nullptr || grads.position != nullptr || grads.sigma != nullptr;
  require(!of_elements || args.for_parameters,
          "grads.weight, position and sigma must be null without for_parameters");
  require(grads.sigma == nullptr || interp::has_width(args.construct.version),
          "grads.sigma must be null for a version without widths");
  require(grad_output != nullptr || geometry::no_output(args.conv), "grad_output must not be null");
  require(input != nullptr || !of_elements || geometry::no_input(args.conv),
          "input must not be null");
  require(saved != nullptr || layer_saved(args, where) == 0, "saved must not be null");
  check_workspace(args, LayerPass::kBackward, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::layer_backward(args, grad_output, input, grads, saved, workspace, where);
  } else {
    cpu::layer_backward(args, grad_output, input, grads, saved, where.num_threads);
  }
}

}  // namespace dcls
