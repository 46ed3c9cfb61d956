// Sixteen floats at once, and the elementary functions over them. Included by kernels_impl.h only, once for each
// instruction set; everything is in an unnamed namespace and inlined, so no two sets share a symbol.
#pragma once

#include <cstdint>

namespace {

using Vec = float __attribute__((vector_size(64)));
using IntVec = int32_t __attribute__((vector_size(64)));
struct __attribute__((packed, aligned(4), may_alias)) Unaligned {
  Vec v;
};
#define RLHF_INLINE_MEMBER inline __attribute__((always_inline))
#define RLHF_INLINE static RLHF_INLINE_MEMBER

constexpr int64_t kLanes = 16;

RLHF_INLINE Vec Load(const float* p) {
  return reinterpret_cast<const Unaligned*>(p)->v;
}
// Sixteen bfloat16 numbers.
RLHF_INLINE Vec Load(const uint16_t* p) {
  using Shorts = uint16_t __attribute__((vector_size(32)));
  Shorts narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  return (Vec)(__builtin_convertvector(narrow, IntVec) << 16);
}
RLHF_INLINE void Store(float* p, Vec v) {
  reinterpret_cast<Unaligned*>(p)->v = v;
}
RLHF_INLINE Vec Splat(float x) {
  return x - Vec{};  // 0 + x would be an addition, for x may be −0
}
// The first n of 16; the others are `otherwise`.
RLHF_INLINE Vec LoadPart(const float* p, int64_t n, float otherwise = 0) {
  Vec v = Splat(otherwise);
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
RLHF_INLINE float Wide(float x) {
  return x;
}
RLHF_INLINE float Wide(uint16_t x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
}
RLHF_INLINE Vec LoadPart(const uint16_t* p, int64_t n) {
  Vec v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = Wide(p[i]);
  return v;
}
RLHF_INLINE void StorePart(float* p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
RLHF_INLINE void StoreSome(float* p, Vec v, int64_t n) {
  if (n >= kLanes) return Store(p, v);
  StorePart(p, v, n);
}

// The fixed tree: lanes l and l+8, then l+4, l+2, l+1.
RLHF_INLINE float Sum(Vec v) {
  float t[16];
  Store(t, v);
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) t[i] += t[i + width];
  }
  return t[0];
}
// The same tree for sixteen vectors at once: lane i of the result is Sum(v[i]).
RLHF_INLINE Vec Sum16(const Vec* v) {
  const IntVec low1 = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}, high1 = low1 + 8;
  const IntVec low2 = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27}, high2 = low2 + 4;
  const IntVec low3 = {0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29}, high3 = low3 + 2;
  const IntVec low4 = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, high4 = low4 + 1;
  Vec a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i) {
    a[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low1) + __builtin_shuffle(v[2 * i], v[2 * i + 1], high1);
  }
  for (int i = 0; i < 4; ++i)
    b[i] = __builtin_shuffle(a[2 * i], a[2 * i + 1], low2) + __builtin_shuffle(a[2 * i], a[2 * i + 1], high2);
  for (int i = 0; i < 2; ++i)
    c[i] = __builtin_shuffle(b[2 * i], b[2 * i + 1], low3) + __builtin_shuffle(b[2 * i], b[2 * i + 1], high3);
  return __builtin_shuffle(c[0], c[1], low4) + __builtin_shuffle(c[0], c[1], high4);
}

RLHF_INLINE Vec Max(Vec a, Vec b) {
  return a > b ? a : b;
}
RLHF_INLINE Vec Abs(Vec x) {
  return (Vec)((IntVec)x & 0x7fffffff);
}

// e^x, relative error below 2e-7; 0 below −87.3. Cephes' expf: x = n ln 2 + r, a polynomial in r.
RLHF_INLINE Vec Exp(Vec x) {
  const Vec kept = x;
  x = x > 88.3762626647949F ? Splat(88.3762626647949F) : x;
  x = x < -87.3365478515625F ? Splat(-87.3365478515625F) : x;
  const Vec magic = Splat(12582912.0F);  // adding it rounds to a whole number in the low bits
  const Vec shifted = x * 1.44269504088896341F + magic;
  const Vec n = shifted - magic;
  const IntVec exponent = ((IntVec)shifted - (IntVec)magic + 127) << 23;
  const Vec r = x - n * 0.693359375F + n * 2.12194440e-4F;
  Vec p = Splat(1.9875691500e-4F);
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const Vec y = (p * (r * r) + r + 1.0F) * (Vec)exponent;
  return kept < -87.3365478515625F ? Vec{} : y;
}

// Cephes' tanhf.
RLHF_INLINE Vec Tanh(Vec x) {
  const Vec z = x * x;
  Vec p = Splat(-5.70498872745e-3F);
  p = p * z + 2.06390887954e-2F;
  p = p * z - 5.37397155531e-2F;
  p = p * z + 1.33314422036e-1F;
  p = p * z - 3.33332819422e-1F;
  const Vec small = p * z * x + x;
  const Vec magnitude = 1.0F - 2.0F / (Exp(2.0F * Abs(x)) + 1.0F);
  const Vec large = x < 0.0F ? -magnitude : magnitude;
  return Abs(x) < 0.625F ? small : large;
}

// Cephes' erff and erfcf.
RLHF_INLINE Vec Erf(Vec x) {
  const Vec z = x * x;
  Vec p = Splat(7.853861353153693e-5F);
  p = p * z - 8.010193625184903e-4F;
  p = p * z + 5.188327685732524e-3F;
  p = p * z - 2.685381193529856e-2F;
  p = p * z + 1.128358514861418e-1F;
  p = p * z - 3.761262582423300e-1F;
  p = p * z + 1.128379165726710F;
  const Vec small = p * x;
  const Vec a = Abs(x) < 1.0F ? Splat(1.0F) : Abs(x);
  const Vec q = 1.0F / a, y = q * q;
  Vec middle = Splat(2.326819970068386e-2F);
  middle = middle * y - 1.387039388740657e-1F;
  middle = middle * y + 3.687424674597105e-1F;
  middle = middle * y - 5.824733027278666e-1F;
  middle = middle * y + 6.210004621745983e-1F;
  middle = middle * y - 4.944515323274145e-1F;
  middle = middle * y + 3.404879937665872e-1F;
  middle = middle * y - 2.741127028184656e-1F;
  middle = middle * y + 5.638259427386472e-1F;
  Vec far = Splat(-1.047766399936249e+1F);
  far = far * y + 1.297719955372516e+1F;
  far = far * y - 7.495518717768503F;
  far = far * y + 2.921019019210786F;
  far = far * y - 1.015265279202700F;
  far = far * y + 4.218463358204948e-1F;
  far = far * y - 2.820767439740514e-1F;
  far = far * y + 5.641895067754075e-1F;
  const Vec complement = Exp(-(a * a)) * q * (a < 2.0F ? middle : far);
  const Vec magnitude = 1.0F - complement;
  return Abs(x) < 1.0F ? small : (x < 0.0F ? -magnitude : magnitude);
}

}  // namespace
