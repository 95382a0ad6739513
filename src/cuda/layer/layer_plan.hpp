#pragma once

// How the CUDA back end runs a layer: the plans of its launches, and what lies where in `saved` and
// in the workspaces. Host only. Everything follows from the shapes alone, as in conv_tile_plan.hpp.
//
//   saved                the lists of the gradient of the input, those of the kernel's gradient,
//                        and the support: each where a backward pass asks for it
//   workspace, forward   the lists of the forward pass, and the cells of the kernel where those of
//                        a row do not fit into shared memory
//   workspace, backward  the sums of each split, of the kernel's gradient and of the bias's, and
//                        for tensor cores the copies of tensors in channels_last
//
// On tensor cores, and where lists are so long that they are made in parts, the cells of the kernel
// in the dtype of the convolution stand in `saved` for all lists. Each pass then makes its own.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/construct/construct_plan.hpp"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "dcls/layer.hpp"

namespace dcls::cuda {

/// What every GPU gives a block without being asked.
inline constexpr std::size_t kLayerShared = 48 * 1024;
/// Blocks that a launch is cut into before a block takes several rows.
inline constexpr std::int64_t kLayerBlocks = 1024;

/// The lists of a pass; without stages where it is not asked for.
struct LayerLists {
  ConvPlan plan{};
  ConvLists at;
};

/// The launch that builds cells, support and lists. A row is one of the convolution's kernel, and
/// has `points` rows of the construct operator.
struct LayerPrepare {
  ConstructArgs construct;
  ForwardPlan boxes{};
  DType dtype{};  ///< of the convolution
  std::int64_t rows = 0;
  std::int64_t row_cells = 0;
  std::int64_t points = 0;
  std::int64_t group = 1;  ///< rows of a block
  std::size_t shared = 0;  ///< bytes; first the taps,
  std::size_t cells_at = 0, lacks_at = 0;
  bool cells_in_shared = false;
  void* cells = nullptr;            ///< of all rows, if not in shared memory
  void* saved_cells = nullptr;      ///< the same in `dtype`; null if not asked for
  std::uint8_t* support = nullptr;  ///< null if not asked for
  LayerLists values[2];             ///< forward pass, gradient of the input
  LayerLists places;                ///< gradient of the kernel

  std::int64_t blocks() const { return divide_up(rows, group); }
};

/// The launch that adds the splits, contracts the kernel's gradient with the taps, and sums the
/// bias.
struct LayerFinish {
  ConstructArgs construct;
  BackwardPlan taps{};
  ConvArgs conv;
  ConvPlan plan{};
  DType dtype{};  ///< of the convolution
  const void* grad_output = nullptr;
  const void* input = nullptr;
  std::int64_t rows = 0;
  std::int64_t points = 0;
  std::int64_t group = 1;        ///< rows of a block
  std::size_t shared = 0;        ///< bytes; first the taps,
  std::size_t cells_at = 0;      ///< then the cells of the block's rows,
  bool cells_in_shared = false;  ///< or those of the first split are overwritten
  void* partial = nullptr;       ///< (splits, rows, cells)
  const std::uint8_t* support = nullptr;
  const void* bias_sums = nullptr;  ///< (splits, channels)
  std::int64_t channels = 0;
  void* bias = nullptr;
  ConstructGrads grads{};

  bool of_kernel() const {
    return grads.weight != nullptr || grads.position != nullptr || grads.sigma != nullptr;
  }
  std::int64_t row_blocks() const { return of_kernel() ? divide_up(rows, group) : 0; }
  std::int64_t blocks() const {
    return row_blocks() + (bias != nullptr ? divide_up(channels, kBackwardThreads) : 0);
  }
};

class LayerPlan {
 public:
  explicit LayerPlan(const LayerArgs& layer, bool tensor_cores = false)
      : args_(layer), tensor_cores_(tensor_cores) {
    const ConvArgs& conv = args_.conv;
    forward_ = make_conv_plan(conv, ConvPass::kForward);
    if (args_.for_input) input_ = make_conv_plan(conv, ConvPass::kBackwardInput);
    // The bias has a gradient without any input channel, too.
    ConvArgs with_inputs = conv;
    if (conv.in_channels == 0) with_inputs.in_channels = conv.groups;
    kernel_ = tensor_cores ? make_toeplitz_finish_plan(conv)
                           : make_conv_plan(with_inputs, ConvPass::kBackwardKernel);
    rows_ = forward_.kernel_rows;
    points_ = rows_ > 0 ? args_.construct.rows / rows_ : 0;
    has_parameters_ = args_.for_parameters && rows_ > 0 && args_.construct.elements > 0;
    if (tensor_cores) {
      saves_cells_ = true;
      return;
    }
    forward_bytes_ = list_bytes_of(forward_, forward_.list_rows, conv.dtype);
    input_bytes_ = list_bytes_of(input_, input_.list_rows, conv.dtype);
    if (has_parameters_) kernel_bytes_ = list_bytes_of(kernel_, kernel_.list_rows, conv.dtype);
    const auto most =
        std::max({forward_bytes_.lists(), input_bytes_.lists(), kernel_bytes_.lists()});
    saves_cells_ = most > most_list_bytes;
    if (!saves_cells_) return;
    const auto parts = [&](const ConvPlan& plan, ConvPass pass) {
      return conv_workspace(plan, pass, conv.dtype);
    };
    forward_bytes_ = parts(forward_, ConvPass::kForward);
    if (args_.for_input) input_bytes_ = parts(input_, ConvPass::kBackwardInput);
    if (has_parameters_) kernel_bytes_ = parts(kernel_, ConvPass::kBackwardKernel);
  }

  const ConvPlan& forward() const { return forward_; }
  const ConvPlan& input() const { return input_; }
  const ConvPlan& kernel() const { return kernel_; }

  /// With TF32 it is 8 bytes more than a multiple of 256, else such a multiple: the size tells
  /// which forward pass saved it.
  std::size_t saved() const {
    const bool tf32 = tensor_cores_ && args_.conv.dtype == DType::kFloat32;
    return support_at() + support_bytes() + (tf32 ? 8 : 0);
  }
  std::size_t workspace(LayerPass pass) const {
    if (pass == LayerPass::kForward) {
      const LayerPrepare job = prepare(nullptr, nullptr);
      return forward_bytes_.lists() + (job.cells_in_shared ? 0 : cells_bytes(1));
    }
    if (tensor_cores_) return sums_bytes() + channels_first_bytes(args_.conv);
    if (!saves_cells_) return sums_bytes();
    return sums_bytes() + std::max(input_bytes_.lists(), kernel_bytes_.lists());
  }

  ConvLists forward_lists(void* workspace) const { return {workspace, forward_bytes_}; }
  ConvLists input_lists(const void* saved) const {
    return {const_cast<void*>(saved), input_bytes_};
  }
  ConvLists kernel_lists(const void* saved) const {
    if (!has_parameters_) return {};
    return {at(saved, input_bytes_.lists()), kernel_bytes_};
  }
  /// Whether cells are saved in place of lists.
  bool saves_cells() const { return saves_cells_; }
  void* saved_cells(const void* saved) const { return at(saved, 0); }
  /// Where a backward pass makes lists, if none are saved.
  void* lists(void* workspace) const { return at(workspace, sums_bytes()); }
  void* bias_sums(void* workspace) const { return at(workspace, partial_bytes()); }
  /// What tensor cores read of tensors in channels_last, for the gradient of the kernel.
  void* copies(void* workspace) const { return at(workspace, sums_bytes()); }

  LayerPrepare prepare(void* saved, void* workspace) const {
    LayerPrepare job;
    job.construct = args_.construct;
    job.dtype = args_.conv.dtype;
    job.rows = rows_;
    job.row_cells = forward_.cells;
    job.points = points_;
    if (rows_ == 0) return job;
    const ForwardPlan whole = make_forward_plan(args_.construct);
    job.group = std::clamp<std::int64_t>(whole.rows / points_, 1,
                                         std::max<std::int64_t>(1, rows_ / kLayerBlocks));
    ConstructArgs own = args_.construct;
    own.rows = job.group * points_;
    job.boxes = make_forward_plan(own);
    const auto pairs = static_cast<std::int64_t>(job.boxes.rows) * job.boxes.chunk;
    job.cells_at = job.boxes.shared_values() * value_bytes();
    job.lacks_at = job.cells_at;
    const std::size_t lacks =
        has_parameters_ ? static_cast<std::size_t>(pairs * job.boxes.entries) : 0;
    const std::size_t cells = static_cast<std::size_t>(job.group * job.row_cells) * value_bytes();
    job.cells_in_shared = job.cells_at + cells + lacks <= kLayerShared;
    if (job.cells_in_shared) job.lacks_at += cells;
    job.cells = at(workspace, forward_bytes_.lists());
    job.shared = job.lacks_at + lacks;
    if (saves_cells_) {
      job.saved_cells = saved_cells(saved);
    } else {
      job.values[0] = {forward_, forward_lists(workspace)};
      job.values[1] = {input_, input_lists(saved)};
      if (has_parameters_) job.places = {kernel_, kernel_lists(saved)};
    }
    if (has_parameters_) {
      job.support = static_cast<std::uint8_t*>(at(saved, support_at()));
    }
    return job;
  }

  LayerFinish finish(const LayerGrads& grads, const void* saved, void* workspace) const {
    LayerFinish job;
    job.construct = args_.construct;
    job.conv = args_.conv;
    job.plan = kernel_;
    job.dtype = args_.conv.dtype;
    job.rows = rows_;
    job.points = points_;
    job.channels = args_.conv.out_channels;
    job.bias = job.channels > 0 ? grads.bias : nullptr;
    job.bias_sums = bias_sums(workspace);
    if (!has_parameters_) return job;
    job.grads = {grads.weight, grads.position, grads.sigma};
    job.partial = workspace;
    job.support = static_cast<const std::uint8_t*>(at(saved, support_at()));
    job.taps = make_backward_plan(args_.construct);
    job.cells_at = job.taps.shared_values() * value_bytes();
    const std::size_t row = static_cast<std::size_t>(kernel_.cells) * value_bytes();
    const auto room = static_cast<std::int64_t>((kLayerShared - job.cells_at) / row);
    job.cells_in_shared = room > 0;
    // So many rows that no group of lanes is without an element.
    const std::int64_t most =
        std::min(kBackwardGroups / (points_ * args_.construct.elements), rows_ / kLayerBlocks);
    job.group = std::clamp<std::int64_t>(room, 1, std::max<std::int64_t>(1, most));
    job.shared =
        job.cells_at + (job.cells_in_shared ? static_cast<std::size_t>(job.group) * row : 0);
    return job;
  }

 private:
  static void* at(const void* memory, std::size_t offset) {
    auto* const begin = static_cast<std::byte*>(const_cast<void*>(memory));
    return begin == nullptr ? nullptr : begin + offset;
  }
  std::size_t value_bytes() const { return compute_bytes(args_.conv.dtype); }
  std::size_t cells_bytes(std::int64_t copies) const {
    return aligned_bytes(copies * rows_ * forward_.cells, value_bytes());
  }
  std::size_t support_at() const {
    if (saves_cells_) return aligned_bytes(rows_ * forward_.cells, storage_bytes(args_.conv.dtype));
    return input_bytes_.lists() + kernel_bytes_.lists();
  }
  std::size_t support_bytes() const {
    return has_parameters_ ? aligned_bytes(rows_ * forward_.cells, 1) : 0;
  }
  /// One copy if there is nothing to split, for what the last launch may write.
  std::size_t partial_bytes() const {
    return has_parameters_ ? cells_bytes(std::max<std::int64_t>(1, kernel_.splits)) : 0;
  }

  std::size_t bias_bytes() const {
    return aligned_bytes(kernel_.splits * args_.conv.out_channels, value_bytes());
  }

  std::size_t sums_bytes() const { return partial_bytes() + bias_bytes(); }

  LayerArgs args_;
  bool tensor_cores_;
  bool saves_cells_ = false;
  ConvPlan forward_, input_{}, kernel_;
  ConvWorkspace forward_bytes_{}, input_bytes_{}, kernel_bytes_{};
  std::int64_t rows_, points_;
  bool has_parameters_;  ///< and their gradients may be asked for
};

}  // namespace dcls::cuda
