// Launches of the CUDA kernels, without LibTorch: pointers are the device's, a stream is a cudaStream_t. Each returns
// at once; the result is a cudaError_t (0: launched). Built with RLHF_CUDA only.
#pragma once

#include <cstdint>

#include "model/kernels/cpu_kernels.h"
#include "model/kernels/sample_row.h"

namespace rlhf::model::kernels::cuda {

enum class Element { kFloat32, kBfloat16 };

// Sequences that extend by one token. Sequence b's token is row rows[b] of qkv; its keys, [kv_heads, rooms[b], dim],
// begin `begins[b]` elements into the store, and are lengths[b] with the new one; of length 0: nothing is done for it.
struct DecodePlaces {
  const int64_t *rows = nullptr, *begins = nullptr, *rooms = nullptr, *lengths = nullptr;
  int64_t count = 0;
};

// The longest head that DecodeAttention serves.
constexpr int64_t kLongestHead = 256;
// How many query heads that share their keys a block takes together: 1, 2, 4 or 8. A group of another size computes its
// last head again for what is missing of the last block, and does not write it.
int64_t DecodeHeads(const AttentionShape& shape);
// Floats of scratch for `splits` parts of the keys; 0 for one.
int64_t DecodeScratch(const AttentionShape& shape, int64_t count, int64_t splits);
// In how many parts to cut the keys so that a device with so many multiprocessors is busy.
int64_t DecodeSplits(const AttentionShape& shape, int64_t count, int64_t multiprocessors);

// The new tokens' keys and values into the stores. qkv: [rows, heads + 2 · kv_heads, dim].
int AppendKeys(const AttentionShape& shape, Element element, const void* qkv, const DecodePlaces& places, void* keys,
               void* values, void* stream);
// Row rows[b] of out [rows, heads · dim] for each sequence.
int DecodeAttention(const AttentionShape& shape, Element element, const void* qkv, const void* keys, const void* values,
                    const DecodePlaces& places, int64_t splits, float* scratch, void* out, void* stream);

// One block a row. logits, exps (scratch): [count, width]; requests, tokens: [count].
int SampleRows(const float* logits, int64_t count, int64_t width, const SampleRequest* requests, float* exps,
               SampledRow* tokens, void* stream);

const char* ErrorText(int error);

}  // namespace rlhf::model::kernels::cuda
