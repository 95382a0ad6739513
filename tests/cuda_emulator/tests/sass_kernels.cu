// The kernels of sass_kernels.sass.
extern "C" __global__ void copy(const float* from, float* to) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  to[i] = from[i];
}

// c = a * b of 32 rows and columns, by one block of 32 * 8 threads; b goes through shared memory.
extern "C" __global__ void product(const float* a, const float* b, float* c) {
  __shared__ float tile[32][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
#pragma unroll 1
  for (int i = y; i < 32; i += 8) tile[i][x] = b[i * 32 + x];
  __syncthreads();
#pragma unroll 1
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
#pragma unroll 1
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

// Copies 256 values through shared memory with cp.async, in two groups.
extern "C" __global__ void copy_async(const float* from, float* to) {
  __shared__ __align__(16) float tile[256];
  const int lane = threadIdx.x;
  for (int half = 0; half < 2; ++half) {
    const unsigned at =
        static_cast<unsigned>(__cvta_generic_to_shared(tile + half * 128 + lane * 4));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at),
                 "l"(from + half * 128 + lane * 4)
                 : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < 4; ++i) to[i * 32 + lane] = tile[i * 32 + lane];
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncwarp();
  for (int i = 4; i < 8; ++i) to[i * 32 + lane] = tile[i * 32 + lane];
}

// Reads the second half without waiting for it.
extern "C" __global__ void copy_too_early(const float* from, float* to) {
  __shared__ __align__(16) float tile[256];
  const int lane = threadIdx.x;
  for (int half = 0; half < 2; ++half) {
    const unsigned at =
        static_cast<unsigned>(__cvta_generic_to_shared(tile + half * 128 + lane * 4));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at),
                 "l"(from + half * 128 + lane * 4)
                 : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncwarp();
  for (int i = 0; i < 8; ++i) to[i * 32 + lane] = tile[i * 32 + lane];
}

// c = a * b with one mma of 16 x 8 x 16: a by ldmatrix, b by ldmatrix.trans.
extern "C" __global__ void product_mma(const unsigned short* a, const unsigned short* b, float* c) {
  __shared__ __align__(16) unsigned short sa[16 * 16], sb[16 * 8];
  const int lane = threadIdx.x;
#pragma unroll 1
  for (int i = lane; i < 256; i += 32) sa[i] = a[i];
#pragma unroll 1
  for (int i = lane; i < 128; i += 32) sb[i] = b[i];
  __syncwarp();
  unsigned ra[4], rb[2];
  const unsigned pa =
      static_cast<unsigned>(__cvta_generic_to_shared(sa + (lane % 16) * 16 + lane / 16 * 8));
  const unsigned pb = static_cast<unsigned>(__cvta_generic_to_shared(sb + lane % 16 * 8));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
               : "r"(pa)
               : "memory");
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(rb[0]), "=r"(rb[1])
               : "r"(pb)
               : "memory");
  float d[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  const int row = lane / 4, column = lane % 4 * 2;
  c[row * 8 + column] = d[0];
  c[row * 8 + column + 1] = d[1];
  c[(row + 8) * 8 + column] = d[2];
  c[(row + 8) * 8 + column + 1] = d[3];
}
