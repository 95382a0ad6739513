#pragma once

#include "dcls/im2col.hpp"

namespace dcls::cuda {

/// Launchers for one number of dimensions; each is instantiated in a .cu file of its own.
template <int D>
void launch_im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where);
template <int D>
void launch_im2col_backward(const Im2colArgs& args, const void* grad_columns,
                            const Im2colGrads& grads, void* workspace, const Execution& where);
template <int D>
void launch_im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                          void* grad_position, void* grad_sigma, void* workspace,
                          const Execution& where);

}  // namespace dcls::cuda
