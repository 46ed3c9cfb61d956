"""A batch of sequences in llama.cpp, through the C functions that `llama-cpp-python` names: each row a sequence id, one llama_decode a token for all
rows, its own sampler at temperature 1. What is set from Python in a step are two arrays and one call a row."""
import ctypes

import llama_cpp
import numpy


@llama_cpp.llama_log_callback
def _quiet(level, text, data):
    pass


class Batch:
    """Rows of equal length, all of them going on until they are told to stop: ends of text are tokens as others."""

    def __init__(self, path, rows, prompt_tokens, new_tokens, threads):
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise SystemExit(f"llama.cpp: {path} cannot be loaded")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = rows * (prompt_tokens + new_tokens)
        params.n_batch = rows * prompt_tokens
        params.n_seq_max = rows
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp: no context for {rows} sequences of {prompt_tokens + new_tokens} tokens")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.samplers = [llama_cpp.llama_sampler_init_dist(row) for row in range(rows)]

    def _batch(self, rows, tokens):
        """A batch of rows × tokens positions whose rows' last ones have logits, and its arrays of tokens and positions."""
        size = rows * tokens
        batch = llama_cpp.llama_batch_init(size, 0, 1)
        batch.n_tokens = size
        for i in range(size):
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i // tokens, (i + 1) % tokens == 0
        return batch, numpy.ctypeslib.as_array(batch.token, (size,)), numpy.ctypeslib.as_array(batch.pos, (size,))

    def _decode(self, batch):
        if code := llama_cpp.llama_decode(self.context, batch):
            raise SystemExit(f"llama.cpp: llama_decode answered {code}")

    def prefill(self, prompts):
        """prompts: rows of ids, equally long. From empty caches."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        rows, tokens = len(prompts), len(prompts[0])
        batch, ids, positions = self._batch(rows, tokens)
        ids[:] = numpy.array(prompts).reshape(-1)
        positions[:] = numpy.tile(numpy.arange(tokens), rows)
        self._decode(batch)
        llama_cpp.llama_batch_free(batch)

    def last_logits(self, prompts):
        """Of each row's last position, [rows, vocabulary] float32."""
        self.prefill(prompts)
        tokens = len(prompts[0])
        return numpy.stack([numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, (row + 1) * tokens - 1), (self.vocabulary,)).copy() for row in range(len(prompts))])

    def generate(self, prompts, count):
        """Returns `count` new ids of each row."""
        self.prefill(prompts)
        rows, tokens = len(prompts), len(prompts[0])
        batch, ids, positions = self._batch(rows, 1)
        positions[:] = tokens - 1
        made, outputs = [], [(row + 1) * tokens - 1 for row in range(rows)]
        for step in range(count):
            ids[:] = [llama_cpp.llama_sampler_sample(sampler, self.context, output) for sampler, output in zip(self.samplers, outputs)]
            made.append(ids.copy())
            outputs = range(rows)
            positions += 1
            if step + 1 < count:
                self._decode(batch)
        llama_cpp.llama_batch_free(batch)
        return numpy.stack(made, axis=1)
