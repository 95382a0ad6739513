// The kernels of sass_kernels.sass.
extern "C" __global__ void copy(const float* from, float* to) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  to[i] = from[i];
}

// c = a * b of 32 rows and columns, by one block of 32 * 8 threads; b goes through shared memory.
extern "C" __global__ void product(const float* a, const float* b, float* c) {
  __shared__ float tile[32][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int i = y; i < 32; i += 8) tile[i][x] = b[i * 32 + x];
  __syncthreads();
  for (int row = y; row < 32; row += 8) {
    float sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < 32; ++k) sum = fmaf(a[row * 32 + k], tile[k][x], sum);
    c[row * 32 + x] = sum;
  }
}

// Reads a column of a tile: all lanes of a warp the same bank.
extern "C" __global__ void column(float* to) {
  __shared__ float tile[32 * 32];
  const int lane = threadIdx.x;
  for (int i = 0; i < 32; ++i) tile[i * 32 + lane] = i + 1;
  __syncwarp();
  to[lane] = tile[lane * 32];
}

// Lanes that go apart, loop as often as their number says, and meet again for a sum.
extern "C" __global__ void apart(const int* times, long long* to) {
  const int lane = threadIdx.x;
  long long sum = 0;
#pragma unroll 1
  for (int i = 0; i < times[lane]; ++i) sum += i * 3 + 1;
  if (lane % 2 == 0)
    sum = sum / (lane + 1) - 7;
  else
    sum = sum % (lane + 2);
  __syncwarp();
  int word = static_cast<int>(sum);
  for (int o = 16; o > 0; o /= 2) word += __shfl_xor_sync(0xffffffffu, word, o);
  to[lane] = sum * 1000 + word;
}
