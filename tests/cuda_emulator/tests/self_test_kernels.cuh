// Kernels for the self-tests of the CUDA-on-host harness: sound ones first, then ones with a fault
// each. They are CUDA, nvcc compiles them too (with dcls::cuda::dynamic_shared from the library).
#pragma once

// ---- sound -------------------------------------------------------------------------------------

/// Each thread writes its number in the grid; sizes.x * sizes.y * sizes.z elements, x fastest.
__global__ void write_index(int* output, dim3 sizes) {
  const unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned y = blockIdx.y * blockDim.y + threadIdx.y;
  const unsigned z = blockIdx.z * blockDim.z + threadIdx.z;
  if (x >= sizes.x || y >= sizes.y || z >= sizes.z) return;
  output[(z * sizes.y + y) * sizes.x + x] +=
      static_cast<int>((z * (gridDim.y * blockDim.y) + y) * (gridDim.x * blockDim.x) + x);
}

/// Sum of each block's part of the input, by a tree in static shared memory.
template <class T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    block_sum(T* __restrict__ output, const T* __restrict__ input, int size) {
  __shared__ T partial[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread;
  partial[thread] = i < size ? __ldg(input + i) : T(0);
  __syncthreads();
  for (int count = kThreads; count > 1; count = (count + 1) / 2) {
    const int half = (count + 1) / 2;
    if (thread < count - half) partial[thread] += partial[thread + half];
    __syncthreads();
  }
  if (thread == 0) output[blockIdx.x] = partial[0];
}

/// The shuffles, one after another; output has a row of blockDim.x for each kind.
template <class T>
__global__ void shuffles(T* output, const T* input, int argument, int width) {
  const unsigned n = blockDim.x;
  const unsigned t = threadIdx.x;
  const unsigned all = 0xffffffffu;
  output[0 * n + t] = __shfl_sync(all, input[t], argument, width);
  output[1 * n + t] = __shfl_up_sync(all, input[t], static_cast<unsigned>(argument), width);
  output[2 * n + t] = __shfl_down_sync(all, input[t], static_cast<unsigned>(argument), width);
  output[3 * n + t] = __shfl_xor_sync(all, input[t], argument, width);
}

/// Sum over groups of `width` lanes; lanes that a partial last warp does not have are not in the
/// mask.
template <class T>
__global__ void warp_sum(T* output, const T* input, int width) {
  const unsigned t = threadIdx.x;
  const unsigned warp_begin = t / 32 * 32;
  const unsigned lanes = blockDim.x - warp_begin;
  const unsigned mask = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
  T sum = input[t];
  for (int distance = width / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(mask, sum, distance, width);
  }
  output[t] = sum;
}

/// Ballot, any and all over a full mask, then over the even and the odd lanes apart, which run
/// different code.
__global__ void votes(unsigned* output, const int* input) {
  const unsigned n = blockDim.x;
  const unsigned t = threadIdx.x;
  const unsigned all = 0xffffffffu;
  output[0 * n + t] = __ballot_sync(all, input[t]);
  output[1 * n + t] = static_cast<unsigned>(__any_sync(all, input[t]));
  output[2 * n + t] = static_cast<unsigned>(__all_sync(all, input[t]));
  if (t % 2 == 0) {
    output[3 * n + t] = __ballot_sync(0x55555555u, input[t]);
  } else {
    __syncwarp(0xaaaaaaaau);
    output[3 * n + t] = static_cast<unsigned>(__any_sync(0xaaaaaaaau, input[t]));
  }
  __syncwarp();
  output[4 * n + t] = __ballot_sync(all, input[t]);
}

/// Reverses each block's part of the input through dynamic shared memory, `rounds` times.
template <class T>
__global__ void reverse_blocks(T* data, int rounds) {
  T* const staged = dcls::cuda::dynamic_shared<T>();
  const unsigned n = blockDim.x;
  const unsigned t = threadIdx.x;
  const unsigned i = blockIdx.x * n + t;
  for (int round = 0; round < rounds; ++round) {
    staged[t] = data[i];
    __syncthreads();
    data[i] = staged[n - 1 - t];
    __syncthreads();
  }
}

/// Writes what nobody has written.
template <class T>
__global__ void read_unwritten_shared(T* output) {
  output[blockIdx.x * blockDim.x + threadIdx.x] = dcls::cuda::dynamic_shared<T>()[threadIdx.x];
}

/// Keeps many values in registers across waits.
__global__ void hold_registers(double* output, int rounds) {
  const unsigned t = threadIdx.x;
  double a = t + 0.5, b = t * 2.0, c = t * 3.0, d = t * 5.0, e = t * 7.0, f = t * 11.0;
  long i = t, j = 2 * i, k = 3 * i, l = 5 * i, m = 7 * i;
  for (int round = 0; round < rounds; ++round) {
    a += b, b += c, c += d, d += e, e += f, f += a;
    i += j, j += k, k += l, l += m, m += i % 1000;
    __syncthreads();
    i ^= k, k ^= m, f *= 0.5;
    __syncwarp();
  }
  output[t] = a + b + c + d + e + f + static_cast<double>((i + j + k + l + m) % 100003);
}

/// The lanes from `first_out` on leave; the rest sums itself up with the full mask.
__global__ void sum_of_the_rest(int* output, int first_out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= first_out) return;
  int sum = t;
  for (int distance = 1; distance < first_out; distance *= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  output[t] = sum;
}

/// Swaps neighbours through shared memory, which __syncwarp() orders and a shuffle does not: with
/// kSound = false the neighbours race.
template <bool kSound>
__global__ void swap_neighbours(int* data) {
  int* const staged = dcls::cuda::dynamic_shared<int>();
  const unsigned t = threadIdx.x;
  staged[t] = data[t];
  if (kSound) {
    __syncwarp();
  } else {
    __shfl_xor_sync(0xffffffffu, 0, 1);
  }
  data[t] = staged[t ^ 1u];
}

/// One element a thread, no rendezvous.
__global__ void scale(float* output, const float* input, long long size, float factor) {
  const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) output[i] = factor * input[i];
}

// ---- with a fault ------------------------------------------------------------------------------

/// reverse_blocks without its first barrier.
template <class T>
__global__ void reverse_without_barrier(T* data) {
  T* const staged = dcls::cuda::dynamic_shared<T>();
  const unsigned t = threadIdx.x;
  staged[t] = data[t];
  data[t] = staged[blockDim.x - 1 - t];
}

/// Each block reads what the block before it writes.
__global__ void read_of_other_block(int* data) { data[blockIdx.x + 1] = data[blockIdx.x] + 1; }

/// Overwrites its stage before the others have read it, in the second round.
template <class T>
__global__ void rotate_without_second_barrier(T* data, int rounds) {
  __shared__ T staged[1024];
  const unsigned t = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    staged[t] = data[t];
    __syncthreads();
    data[t] = staged[(t + 1) % blockDim.x];
  }
}

__global__ void barrier_for_some(unsigned count) {
  if (threadIdx.x < count) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_against_shuffle(int* output) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    output[blockIdx.x * blockDim.x + threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}

__global__ void shuffle_against_ballot(unsigned* output) {
  if (threadIdx.x == 5) {
    output[5] = __ballot_sync(0xffffffffu, 1);
  } else {
    output[threadIdx.x] = __shfl_sync(0xffffffffu, 1u, 0);
  }
}

__global__ void shuffle_of_other_masks(int* output) {
  output[threadIdx.x] = __shfl_sync(threadIdx.x == 0 ? 0xffffffffu : 0xfffffffeu, 1, 1);
}

__global__ void shuffle(int* output, unsigned mask, int source, int width) {
  const unsigned t = threadIdx.x;
  if (t < 8) output[t] = __shfl_sync(mask, static_cast<int>(t), source, width);
}

__global__ void shuffle_down_by(int* output, unsigned delta) {
  output[threadIdx.x] = __shfl_down_sync(0xffffffffu, static_cast<int>(threadIdx.x), delta);
}

/// The last thread of each block writes to its shared memory.
__global__ void write_shared_at(int index) {
  if (threadIdx.x + 1 == blockDim.x) dcls::cuda::dynamic_shared<float>()[index] = 1.0f;
  if (threadIdx.x == 0) __syncwarp(1u);
}

/// The last thread of the grid writes.
__global__ void write_at(float* data, long long index) {
  if (blockIdx.x + 1 == gridDim.x && threadIdx.x + 1 == blockDim.x) data[index] = 1.0f;
}

__global__ void add_at(float* output, const float* input, long long index) {
  output[0] += input[index];
}

__global__ void overflow_stack(char* output) {
  volatile char frame[160 * 1024];
  for (int i = 160 * 1024 - 1024; i >= 0; i -= 1024) frame[i] = 1;
  *output = frame[0];
}
