#pragma once

#include <pybind11/pybind11.h>

namespace dcls::bindings {

// One function per family of operators; module.cpp calls them all.
void register_construct(pybind11::module_& m);
void register_conv(pybind11::module_& m);
void register_delay(pybind11::module_& m);
void register_im2col(pybind11::module_& m);
void register_layer(pybind11::module_& m);
void register_runtime(pybind11::module_& m);

}  // namespace dcls::bindings
