// The CUDA back end's operators: which launcher does what. Compiled by the C++ compiler, and
// without a header of CUDA.

#include "cuda/cuda_backend.hpp"

#include "core/conv_geometry.hpp"
#include "core/dispatch.hpp"
#include "cuda/construct/construct_launch.hpp"
#include "cuda/conv/conv_launch.hpp"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/conv/toeplitz_launch.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "cuda/im2col/im2col_launch.hpp"
#include "cuda/layer/layer_launch.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cuda {
namespace {

/// Whether a pass has no value to write; then the callers return before they plan anything.
bool writes_nothing(const ConvArgs& args, ConvPass pass) {
  if (pass == ConvPass::kForward) return geometry::no_output(args);
  if (pass == ConvPass::kBackwardInput) return geometry::no_input(args);
  return args.in_channels == 0 || args.out_channels == 0;
}

/// A launch of the forward pass, or of the gradient of the input, if there is anything to write.
void convolve(const ConvArgs& args, const ConvPlan& plan, ConvPass pass, const ConvLists& lists,
              const void* source, const void* bias, void* target, const Execution& where) {
  if (plan.channel_blocks * plan.phases * plan.tiles == 0) return;
  const auto launch = args.ndim == 1 ? launch_conv_listed<true> : launch_conv_listed<false>;
  launch(plan, pass, args.dtype, lists, source, bias, target, where);
}

/// Whether the tensor cores convolve, in place of lists of cells.
bool on_tensor_cores(const ConvArgs& args, const Execution& where) {
  return toeplitz_covers(args) && (args.dtype != DType::kFloat32 || tf32_pays(args)) &&
         has_tensor_cores(args.dtype, where);
}

/// The instantiation for what tensor cores read of a dtype.
template <typename Launch>
Launch* for_operands(DType dtype, Launch* half, Launch* bfloat16, Launch* tf32) {
  return dtype == DType::kFloat16 ? half : dtype == DType::kBFloat16 ? bfloat16 : tf32;
}

/// The forward pass, or the gradient of the input, from the cells of the kernel.
void direct(const ConvArgs& args, ConvPass pass, const void* source, const void* kernel,
            const void* bias, void* target, void* workspace, const Execution& where) {
  if (writes_nothing(args, pass)) return;
  if (on_tensor_cores(args, where)) {
    auto* const launch =
        for_operands(args.dtype, launch_toeplitz_forward<Half>, launch_toeplitz_forward<BFloat16>,
                     launch_toeplitz_forward<float>);
    return launch(args, pass, source, kernel, bias, target, where);
  }
  const auto launch = args.ndim == 1 ? launch_conv_forward<true> : launch_conv_forward<false>;
  launch(args, pass, source, kernel, bias, target, workspace, where);
}

}  // namespace

void construct(const ConstructArgs& args, void* kernel, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) { launch_construct<ndim()>(args, kernel, where); });
}

void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_construct_backward<ndim()>(args, grad_kernel, grads, where);
  });
}

void construct_support(const ConstructArgs& args, std::uint8_t* support, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_construct_support<ndim()>(args, support, where); });
}

std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass, const Execution& where) {
  if (writes_nothing(args, pass)) return 0;
  if (on_tensor_cores(args, where)) {
    return pass == ConvPass::kBackwardKernel ? toeplitz_kernel_workspace(args) : 0;
  }
  return conv_workspace(make_conv_plan(args, pass), pass, args.dtype).total();
}

void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, void* workspace, const Execution& where) {
  direct(args, ConvPass::kForward, input, kernel, bias, output, workspace, where);
}

void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, void* workspace, const Execution& where) {
  direct(args, ConvPass::kBackwardInput, grad_output, kernel, nullptr, grad_input, workspace,
         where);
}

void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, void* workspace,
                                 const Execution& where) {
  if (writes_nothing(args, ConvPass::kBackwardKernel)) return;
  auto* launch = args.ndim == 1 ? launch_conv_kernel<true> : launch_conv_kernel<false>;
  if (on_tensor_cores(args, where)) {
    launch = for_operands(args.dtype, launch_toeplitz_kernel<Half>,
                          launch_toeplitz_kernel<BFloat16>, launch_toeplitz_kernel<float>);
  }
  launch(args, grad_output, input, support, grad_kernel, workspace, where);
}

std::size_t layer_saved(const LayerArgs& args, const Execution& where) {
  return LayerPlan(args, on_tensor_cores(args.conv, where)).saved();
}

std::size_t layer_workspace(const LayerArgs& args, LayerPass pass, const Execution& where) {
  return LayerPlan(args, on_tensor_cores(args.conv, where)).workspace(pass);
}

void layer_forward(const LayerArgs& args, const void* input, const void* bias, void* output,
                   void* saved, void* workspace, const Execution& where) {
  const LayerPlan plan(args, on_tensor_cores(args.conv, where));
  const LayerPrepare prepare = plan.prepare(saved, workspace);
  if (prepare.blocks() > 0) {
    dispatch_ndim(args.construct.ndim,
                  [&](auto ndim) { launch_layer_prepare<ndim()>(prepare, where); });
  }
  if (plan.saves_cells()) {
    return direct(args.conv, ConvPass::kForward, input, plan.saved_cells(saved), bias, output,
                  workspace, where);
  }
  convolve(args.conv, plan.forward(), ConvPass::kForward, plan.forward_lists(workspace), input,
           bias, output, where);
}

void layer_backward(const LayerArgs& args, const void* grad_output, const void* input,
                    const LayerGrads& grads, const void* saved, void* workspace,
                    const Execution& where) {
  const bool tensor_cores = on_tensor_cores(args.conv, where);
  const LayerPlan plan(args, tensor_cores);
  if (grads.input != nullptr && plan.saves_cells()) {
    direct(args.conv, ConvPass::kBackwardInput, grad_output, plan.saved_cells(saved), nullptr,
           grads.input, plan.lists(workspace), where);
  } else if (grads.input != nullptr) {
    convolve(args.conv, plan.input(), ConvPass::kBackwardInput, plan.input_lists(saved),
             grad_output, nullptr, grads.input, where);
  }
  LayerFinish finish = plan.finish(grads, saved, workspace);
  finish.grad_output = grad_output;
  finish.input = input;
  if (finish.blocks() == 0) return;
  void* const bias_sums = finish.bias != nullptr ? plan.bias_sums(workspace) : nullptr;
  if (tensor_cores) {
    auto* const launch =
        for_operands(args.conv.dtype, launch_toeplitz_partial<Half>,
                     launch_toeplitz_partial<BFloat16>, launch_toeplitz_partial<float>);
    launch(args.conv, grad_output, input, finish.of_kernel() ? finish.partial : nullptr, bias_sums,
           plan.copies(workspace), where);
  } else if (plan.kernel().splits > 0 && plan.saves_cells() && finish.of_kernel()) {
    const auto launch = args.conv.ndim == 1 ? launch_conv_sums<true> : launch_conv_sums<false>;
    launch(plan.kernel(), args.conv.dtype, finish.support, plan.lists(workspace), grad_output,
           input, finish.partial, bias_sums, where);
  } else if (plan.kernel().splits > 0) {
    const auto launch =
        args.conv.ndim == 1 ? launch_conv_partial<true> : launch_conv_partial<false>;
    launch(plan.kernel(), args.conv.dtype,
           finish.of_kernel() ? plan.kernel_lists(saved) : ConvLists{}, grad_output, input,
           finish.partial, bias_sums, where);
  }
  dispatch_ndim(args.construct.ndim,
                [&](auto ndim) { launch_layer_finish<ndim()>(finish, where); });
}

std::int64_t im2col_workspace(const Im2colArgs& args) {
  const TapLayout layout = tap_table::longest_layout(args);
  std::int64_t bytes = 0;
  dispatch_compute(args.dtype, [&](auto tag) {
    bytes = tap_table::bytes<typename decltype(tag)::type>(layout, args.ndim);
  });
  return bytes;
}

void im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_im2col<ndim()>(args, columns, workspace, where); });
}

void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_backward<ndim()>(args, grad_columns, grads, workspace, where);
  });
}

void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_finish<ndim()>(args, sums, parts, grad_position, grad_sigma, workspace, where);
  });
}

}  // namespace dcls::cuda
