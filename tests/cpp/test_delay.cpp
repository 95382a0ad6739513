// Steps of whole delays against the sum of their definition, and the checks of the arguments.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "dcls/delay.hpp"

using namespace dcls;

namespace {

struct Problem {
  std::int64_t steps, rows, elements, inputs, batch;
  std::vector<std::int64_t> delay, item;
  std::vector<double> weight, input, state;

  Problem(std::int64_t steps_, std::int64_t rows_, std::int64_t elements_, std::int64_t inputs_,
          std::int64_t batch_)
      : steps(steps_), rows(rows_), elements(elements_), inputs(inputs_), batch(batch_) {
    std::mt19937 random(1);
    const auto real = [&] { return static_cast<double>(random() % 65) / 32 - 1; };  // exact in all
    for (std::int64_t k = 0; k < rows * elements; ++k) {
      delay.push_back(static_cast<std::int64_t>(random()) % steps);
      item.push_back(static_cast<std::int64_t>(random()) % inputs);
      weight.push_back(real());
    }
    std::generate_n(std::back_inserter(input), inputs * batch, real);
    std::generate_n(std::back_inserter(state), (steps - 1) * rows * batch, real);
  }

  /// (steps, rows, batch): what arrives now, then the next state.
  std::vector<double> expected() const {
    std::vector<double> pending = state;
    pending.resize(static_cast<std::size_t>(steps * rows * batch));
    for (std::int64_t k = 0; k < rows * elements; ++k) {
      const auto c = static_cast<std::size_t>(k);
      for (std::int64_t b = 0; b < batch; ++b) {
        pending[static_cast<std::size_t>((delay[c] * rows + k / elements) * batch + b)] +=
            weight[c] * input[static_cast<std::size_t>(item[c] * batch + b)];
      }
    }
    return pending;
  }
};

template <typename Storage>
std::vector<Storage> stored(const std::vector<double>& values) {
  std::vector<Storage> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    numeric::store(&result[i], static_cast<Compute<Storage>>(values[i]));
  }
  return result;
}

/// Input (inputs, batch), or (batch, inputs) if `by_batch`.
template <typename Storage>
std::vector<Storage> run(const Problem& p, DType dtype, int threads, bool in_place, bool by_batch) {
  const auto weight = stored<Storage>(p.weight), given = stored<Storage>(p.input);
  const DelayStep step(
      {dtype, p.steps, p.rows, p.elements, p.inputs, p.delay.data(), p.item.data(), weight.data()});
  std::vector<Storage> input = given, state = stored<Storage>(p.state), next(state.size());
  std::vector<Storage> pending(static_cast<std::size_t>(p.rows * p.batch));
  for (std::int64_t k = 0; by_batch && k < p.inputs * p.batch; ++k) {
    input[static_cast<std::size_t>(k % p.batch * p.inputs + k / p.batch)] =
        given[static_cast<std::size_t>(k)];
  }
  DelayTensors tensors;
  tensors.batch = p.batch;
  tensors.input = input.data();
  tensors.input_stride = by_batch ? 1 : p.batch;
  tensors.batch_stride = by_batch ? p.inputs : 1;
  tensors.state = state.data();
  tensors.arriving = pending.data();
  tensors.next_state = in_place ? state.data() : next.data();
  step(tensors, threads);
  const std::vector<Storage>& rest = in_place ? state : next;
  pending.insert(pending.end(), rest.begin(), rest.end());
  return pending;
}

template <typename Storage>
void check_all_ways(const Problem& p, DType dtype, double rounding) {
  const std::vector<double> want = p.expected();
  const auto first = run<Storage>(p, dtype, 1, false, false);
  REQUIRE(first.size() == want.size());
  double error = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double got = static_cast<double>(numeric::load(first[i]));
    error = std::max(error, std::abs(got - want[i]) / std::max(1.0, std::abs(want[i])));
  }
  CHECK(error <= rounding);
  for (const bool in_place : {false, true}) {
    const auto other = run<Storage>(p, dtype, 3, in_place, in_place);
    CHECK(std::memcmp(other.data(), first.data(), first.size() * sizeof(Storage)) == 0);
  }
}

}  // namespace

TEST(steps_are_the_sums_of_the_definition) {
  const std::int64_t sizes[][4] = {{1, 3, 4, 5}, {5, 70, 9, 13}, {25, 130, 40, 40}, {4, 2, 0, 1}};
  for (const auto& s : sizes) {
    for (const std::int64_t batch : {1, 2, 8, 33, 70}) {
      const check::Case here("steps ", s[0], ", rows ", s[1], ", batch ", batch);
      const Problem p(s[0], s[1], s[2], s[3], batch);
      check_all_ways<double>(p, DType::kFloat64, 1e-14);
      check_all_ways<float>(p, DType::kFloat32, 1e-6);
      check_all_ways<Half>(p, DType::kFloat16, 0x1p-10);
      check_all_ways<BFloat16>(p, DType::kBFloat16, 0x1p-7);
    }
  }
}

TEST(values_that_are_not_finite_stay_where_they_are_sent) {
  Problem p(3, 4, 1, 4, 2);
  p.delay = {0, 1, 2, 0};
  p.item = {0, 1, 2, 3};
  p.weight = {1, 1, 1, 1};
  p.input[2] = std::numeric_limits<double>::infinity();  // of input 1, at the first of the batch
  const auto got = run<double>(p, DType::kFloat64, 1, false, false);
  for (std::size_t i = 0; i < got.size(); ++i) {
    CHECK(std::isfinite(got[i]) == (i != static_cast<std::size_t>((1 * 4 + 1) * 2)));
  }
}

TEST(arguments_are_checked) {
  Problem p(3, 2, 2, 4, 1);
  DelayArgs args{DType::kFloat64, 3, 2, 2, 4, p.delay.data(), p.item.data(), p.weight.data()};
  const auto refuses = [](const char* part, const DelayArgs& wrong) {
    CHECK_THROWS(std::invalid_argument, part, DelayStep{wrong});
  };
  const auto with = [&](auto DelayArgs::* member, auto value) {
    DelayArgs wrong = args;
    wrong.*member = value;
    return wrong;
  };
  refuses("dtype", with(&DelayArgs::dtype, static_cast<DType>(9)));
  refuses("steps must be", with(&DelayArgs::steps, std::int64_t{0}));
  refuses("rows must be", with(&DelayArgs::rows, std::int64_t{-1}));
  refuses("elements must be", with(&DelayArgs::elements, std::int64_t{-1}));
  refuses("inputs must be", with(&DelayArgs::inputs, std::int64_t{-1}));
  refuses("number of connections", with(&DelayArgs::elements, std::int64_t{1} << 30));
  refuses("number of sums", [&] {
    DelayArgs wrong = with(&DelayArgs::rows, std::int64_t{1} << 30);
    wrong.elements = 1;
    return wrong;
  }());
  refuses("delay must not be null", with(&DelayArgs::delay, nullptr));
  refuses("item must not be null", with(&DelayArgs::item, nullptr));
  refuses("weight must not be null", with(&DelayArgs::weight, nullptr));
  for (const std::int64_t wrong : {-1, 4}) {
    Problem q = p;
    q.delay[3] = wrong;
    refuses("delay must be between 0 and 2", with(&DelayArgs::delay, q.delay.data()));
    q.item[0] = wrong;
    refuses("item must be between 0 and 3", with(&DelayArgs::item, q.item.data()));
  }
  const DelayStep step(args);
  std::vector<double> arriving(2);
  DelayTensors good;
  good.batch = 1;
  good.input = p.input.data();
  good.input_stride = 1;
  good.state = p.state.data();
  good.arriving = arriving.data();
  good.next_state = p.state.data();
  const auto stops = [&](const char* part, auto DelayTensors::* member, auto value) {
    DelayTensors wrong = good;
    wrong.*member = value;
    CHECK_THROWS(std::invalid_argument, part, step(wrong, 1));
  };
  stops("batch must be", &DelayTensors::batch, std::int64_t{-1});
  stops("input must not be null", &DelayTensors::input, nullptr);
  stops("state must not be null", &DelayTensors::state, nullptr);
  stops("arriving must not be null", &DelayTensors::arriving, nullptr);
  stops("next_state must not be null", &DelayTensors::next_state, nullptr);
  CHECK_THROWS(std::invalid_argument, "num_threads", step(good, 0));
  step(DelayTensors{}, 1);  // without sequences nothing is touched
}

CHECK_MAIN()
