// Cached keys and values of KV_BITS bits: from the cache's bytes to elements that mma takes, and in 8 bits back again.
//
// In 8 bits a row (one head's key or value of one position) is integers from -127 to 127 and one float32, its scale.
// Rows are not multiplied by their scales: the scores are by a key's, and the probabilities by a value's.

// So much larger are probabilities times a value's scale, that float16 holds them; it is taken off at last.
float constexpr PROBABILITY_SCALE = KV_BITS == 8 ? 256.0f : 1.0f;

// Sixteen bytes of a cached row to shared memory, as elements.
template <u32 KIND>
__device__ __forceinline__ void store_elements(uint4 bytes, u16* to) {
  if (KV_BITS == 16) {
    *(uint4*)to = bytes;
    return;
  }
  u32 const words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  u32 pairs[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    if (KIND == FLOAT16) {
      // A byte below the exponent of 1024 is 1024 + byte; less 1152, the integer.
      pairs[i] = sub_f16x2(__byte_perm(words[i / 2], 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);
    } else {
      // The same in float32: 2^23 + byte.
      u32 const word = words[i / 2] >> (i % 2 * 16);
      float const low = __uint_as_float(lop3_and_or(word, 255, 0x4b000000u)) - 8388736.0f;
      pairs[i] = pack2<KIND>(low, __uint_as_float(lop3_and_or(word >> 8, 255, 0x4b000000u)) - 8388736.0f);
    }
  }
  ((uint4*)to)[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  ((uint4*)to)[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

template <u32 KIND>
__device__ __forceinline__ float4 unpack4(uint2 packed) {
  return {widen<KIND>((u16)packed.x), widen<KIND>((u16)(packed.x >> 16)), widen<KIND>((u16)packed.y),
          widen<KIND>((u16)(packed.y >> 16))};
}

// 1.5 * 2^23 + value: rounded to the nearest integer, which is in the last bits.
__device__ __forceinline__ float round_in_mantissa(float value) { return value + 12582912.0f; }

// A warp rounds a row in shared memory to 8 bits, by its largest element, and writes it to the cache, if `cached` is
// not null. Returns the scale. It is called in one place: code that runs once a phase is paid for by its length.
template <u32 KIND>
__device__ __forceinline__ float quantize_row(u16* row, u32 dim, u8* cached, float* scale_at) {
  u32 const lane = threadIdx.x % 32;
  __syncwarp();
  float largest = 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = unpack4<KIND>(*(uint2*)(row + i));
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  }
  largest = warp_max(largest);
  float const scale = largest * (1.0f / 127.0f), inverse = largest > 0.0f ? __fdividef(127.0f, largest) : 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = unpack4<KIND>(*(uint2*)(row + i));
    float q[4] = {round_in_mantissa(v.x * inverse), round_in_mantissa(v.y * inverse), round_in_mantissa(v.z * inverse),
                  round_in_mantissa(v.w * inverse)};
    u32 bytes = 0;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      bytes |= (__float_as_uint(q[j]) + 128 & 255) << (8 * j);
      q[j] -= round_in_mantissa(0.0f);
    }
    *(uint2*)(row + i) = make_uint2(pack2<KIND>(q[0], q[1]), pack2<KIND>(q[2], q[3]));
    if (cached) {
      *(u32*)(cached + i) = bytes;
    }
  }
  if (cached && lane == 0) {
    *scale_at = scale;
  }
  return scale;
}
