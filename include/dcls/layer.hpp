#pragma once

#include <cstddef>
#include <cstdint>

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"

namespace dcls {

/// A whole layer: builds the kernel of `construct` and convolves with it as `conv` says.
///
/// The results are those of construct(), direct_conv() and their gradients, called one after the
/// other, and the order of the additions is the same.
struct LayerArgs {
  /// The rows are the pairs of channels, and of a kernel with dense axes the points of these:
  /// rows * size[0] * ... is the number of cells of conv's kernel, (out_channels, in_channels /
  /// groups, kernel_size...). Its dtype is that of `conv`, or kFloat32 where that has 16 bits: the
  /// kernel is then rounded, as under autocast.
  ConstructArgs construct;
  ConvArgs conv;
  /// Whether a backward pass will ask for the gradient of the input, and for those of weight,
  /// position or sigma: `saved` then has what that pass needs.
  bool for_input = false;
  bool for_parameters = false;
};

/// The passes of a layer.
enum class LayerPass : int { kForward = 0, kBackward = 1 };

/// Bytes that the forward pass leaves in `saved` for the backward pass; on CUDA of device memory.
/// Without a backward pass it is what the forward pass itself needs for the kernel. A multiple of
/// 256, and 8 more where kernels are in the layout for TF32: the size tells the two apart.
/// @throws std::invalid_argument if an argument is out of range.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
DCLS_API std::size_t layer_saved(const LayerArgs& args, const Execution& where);

/// Bytes of device memory, aligned to 256, that a pass needs as `workspace`; 0 on the CPU.
/// Throws as layer_saved.
DCLS_API std::size_t layer_workspace(const LayerArgs& args, LayerPass pass, const Execution& where);

/// Writes the output, (N, O, output_size...) in the layout of `args.conv`.
///
/// @param input     (N, I, input_size...) in the layout of `args.conv`.
/// @param bias      (O), of conv's dtype, or null.
/// @param saved     layer_saved(args, where) bytes, written.
/// @param workspace layer_workspace(args, LayerPass::kForward, where) bytes, or null if 0.
/// @throws std::invalid_argument if an argument is out of range or a needed pointer is null.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
/// @throws CudaError if a CUDA call fails.
DCLS_API void layer_forward(const LayerArgs& args, const void* input, const void* bias,
                            void* output, void* saved, void* workspace, const Execution& where);

/// Gradients to compute; null skips one.
struct LayerGrads {
  void* input = nullptr;     ///< (N, I, input_size...) in the layout of `args.conv`
  void* bias = nullptr;      ///< (O), of conv's dtype
  void* weight = nullptr;    ///< (rows, elements), of construct's dtype, as the next two
  void* position = nullptr;  ///< (ndim, rows, elements)
  void* sigma = nullptr;     ///< (ndim, rows, elements); must be null for versions without widths
};

/// Gradients for `grad_output`, of the output's shape and layout. `input` is that of the forward
/// pass, and is read for the gradients of weight, position and sigma. `args`, the parameters and
/// `saved` are those of the forward pass. grads.input needs args.for_input; grads.weight, position
/// and sigma need args.for_parameters. Throws as layer_forward.
DCLS_API void layer_backward(const LayerArgs& args, const void* grad_output, const void* input,
                             const LayerGrads& grads, const void* saved, void* workspace,
                             const Execution& where);

}  // namespace dcls
