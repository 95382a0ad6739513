#pragma once

// The checks of a family's arguments, for the functions of other families that take these too.

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"

namespace dcls::api {

/// Whether a function reads the weights.
enum class Weight { kRead, kNotRead };

/// Throws std::invalid_argument unless all arguments are in range and all pointers are there.
void check_construct(const ConstructArgs& args, const Execution& where,
                     Weight weight = Weight::kRead);
void check_conv(const ConvArgs& args, const Execution& where);

}  // namespace dcls::api
