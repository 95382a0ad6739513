#include <pybind11/stl.h>

#include <cstdint>
#include <vector>

#include "address.hpp"
#include "dcls/layer.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {
namespace {

/// A kernel's construction and the convolution with it, in the order of _native/layer.py.
LayerArgs make_args(const ConstructArgs& construct, const ConvArgs& conv, bool for_input,
                    bool for_parameters) {
  LayerArgs args;
  args.construct = construct;
  args.conv = conv;
  args.for_input = for_input;
  args.for_parameters = for_parameters;
  return args;
}

}  // namespace

void register_layer(py::module_& m) {
  py::class_<LayerArgs>(m, "LayerProblem")
      .def(py::init(&make_args), "construct"_a, "conv"_a, "for_input"_a, "for_parameters"_a);
  m.def("layer_saved", &layer_saved, "problem"_a, "where"_a);
  m.def(
      "layer_workspace",
      [](const LayerArgs& args, int pass, const Execution& where) {
        return layer_workspace(args, static_cast<LayerPass>(pass), where);
      },
      "problem"_a, "layer_pass"_a, "where"_a);
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "layer_forward",
      [](const LayerArgs& args, Address input, Address bias, Address output, Address saved,
         Address workspace, const Execution& where) {
        layer_forward(args, pointer(input), pointer(bias), pointer(output), pointer(saved),
                      pointer(workspace), where);
      },
      "problem"_a, "input"_a, "bias"_a, "output"_a, "saved"_a, "workspace"_a, "where"_a, release);
  m.def(
      "layer_backward",
      [](const LayerArgs& args, Address grad_output, Address input, Address grad_input,
         Address grad_bias, Address grad_weight, Address grad_position, Address grad_sigma,
         Address saved, Address workspace, const Execution& where) {
        const LayerGrads grads{pointer(grad_input), pointer(grad_bias), pointer(grad_weight),
                               pointer(grad_position), pointer(grad_sigma)};
        layer_backward(args, pointer(grad_output), pointer(input), grads, pointer(saved),
                       pointer(workspace), where);
      },
      "problem"_a, "grad_output"_a, "input"_a, "grad_input"_a, "grad_bias"_a, "grad_weight"_a,
      "grad_position"_a, "grad_sigma"_a, "saved"_a, "workspace"_a, "where"_a, release);
}

}  // namespace dcls::bindings
