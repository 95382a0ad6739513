#include <cstdint>
#include <memory>

#include "address.hpp"
#include "dcls/delay.hpp"
#include "register.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dcls::bindings {

void register_delay(py::module_& m) {
  py::class_<DelayStep>(m, "DelayStep")
      .def(py::init([](int dtype, std::int64_t steps, std::int64_t rows, std::int64_t elements,
                       std::int64_t inputs, Address delay, Address item, Address weight) {
             const DelayArgs args{static_cast<DType>(dtype),
                                  steps,
                                  rows,
                                  elements,
                                  inputs,
                                  pointer<const std::int64_t>(delay),
                                  pointer<const std::int64_t>(item),
                                  pointer<const void>(weight)};
             const py::gil_scoped_release release;
             return std::make_unique<DelayStep>(args);
           }),
           "dtype"_a, "steps"_a, "rows"_a, "elements"_a, "inputs"_a, "delay"_a, "item"_a,
           "weight"_a)
      .def(
          "__call__",
          [](const DelayStep& step, std::int64_t batch, Address input, std::int64_t input_stride,
             std::int64_t batch_stride, Address state, Address arriving, Address next_state,
             int num_threads) {
            const DelayTensors tensors{batch,
                                       pointer<const void>(input),
                                       input_stride,
                                       batch_stride,
                                       pointer<const void>(state),
                                       pointer(arriving),
                                       pointer(next_state)};
            const py::gil_scoped_release release;
            step(tensors, num_threads);
          },
          "batch"_a, "input"_a, "input_stride"_a, "batch_stride"_a, "state"_a, "arriving"_a,
          "next_state"_a, "num_threads"_a);
}

}  // namespace dcls::bindings
