#pragma once

// The checks of a family's arguments, for the functions of other families that take these too.

#include <cstdint>

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"
#include "dcls/im2col.hpp"
#include "dcls/layer.hpp"

namespace dcls::api {

/// Whether a function reads the weights.
enum class Weight { kRead, kNotRead };

/// Throw std::invalid_argument unless all arguments are in range and all pointers are there.
///
/// @returns the arguments with what the defaults stand for in their place.
ConstructArgs checked_construct(ConstructArgs args, const Execution& where,
                                Weight weight = Weight::kRead);
void check_conv(const ConvArgs& args, const Execution& where);
LayerArgs checked_layer(LayerArgs args, const Execution& where);
Im2colArgs checked_im2col(const Im2colArgs& args, const Execution& where);
/// Of these arguments those that im2col_finish() reads: it has no input and no columns.
Im2colArgs checked_im2col_elements(Im2colArgs args, const Execution& where);

/// What every family with widths asks of `sigma_min`, and what the default stands for.
double checked_sigma_min(Version version, double sigma_min);

/// What every family asks of output_size[axis] without any_output_size.
void check_output_size(int axis, std::int64_t output_size, std::int64_t usual);

/// output_size() of an axis, -1 where there is one only. Messages call the kernel's size `kernel`.
std::int64_t usual_output_size(const char* kernel, int axis, std::int64_t input_size,
                               std::int64_t kernel_size, std::int64_t stride, std::int64_t padding,
                               std::int64_t dilation);

}  // namespace dcls::api
