"""llama-cpp-python on the host's shared libraries, through the preload library."""
import sys

from harness import BIN, HOST_ROOT, THREADS, WEIGHTS, HostTest, main, run

PACKAGE = HOST_ROOT / "api2/python/llama_cpp"
SCRIPT = """
import sys
from llama_cpp import Llama
# verbose: else the package closes stderr while it loads, and our start-up line with it
llm = Llama(sys.argv[1], n_ctx=256, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), flash_attn=True, verbose=True)
print(llm("The capital of France is", max_tokens=6, temperature=0)["choices"][0]["text"])
"""

# Logits of a long batch, single tokens, and a short batch; with "parts" every node of a graph is computed on its own.
PARTS = """
import ctypes, sys, hashlib
import numpy as np
import llama_cpp as L
model, parts, lengths = sys.argv[1], sys.argv[3] == "parts", [int(n) for n in sys.argv[4:]]
def node(tensor, ask, data):
    return True
node = L.ggml_backend_sched_eval_callback(node)
L.llama_backend_init()
m = L.llama_model_load_from_file(model.encode(), L.llama_model_default_params())
p = L.llama_context_default_params()
p.n_ctx, p.n_batch, p.n_ubatch, p.n_threads, p.n_threads_batch = 1024, 1024, 64, int(sys.argv[2]), int(sys.argv[2])
if parts:
    p.cb_eval = node
c = L.llama_init_from_model(m, p)
n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(m))
at, rows = 0, []
for n in lengths:
    b = L.llama_batch_init(n, 0, 1)
    b.n_tokens = n
    for i in range(n):
        b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = 1000 + 37 * (at + i), at + i, 1, 0, True
    at += n
    assert L.llama_decode(c, b) == 0
    rows.append(np.ctypeslib.as_array(L.llama_get_logits(c), (n, n_vocab)).copy())
    L.llama_batch_free(b)
x = np.concatenate(rows)
assert np.isfinite(x).all()
print(hashlib.sha256(x.tobytes()).hexdigest())
L.llama_free(c)
L.llama_model_free(m)
"""


class Python(HostTest):
    def python(self, script=SCRIPT, *args, **how):
        # The package wants its libraries in its own folder; the host's are linked there.
        package = self.folder / "llama_cpp"
        if not package.exists():
            package.mkdir()
            for file in PACKAGE.iterdir():
                (package / file.name).symlink_to(file)
            if not (package / "lib").exists():
                (package / "lib").symlink_to(BIN)
        env = {"PYTHONPATH": str(self.folder), "LLAMA_CPP_LIB_PATH": str(BIN), "PYTHONDONTWRITEBYTECODE": "1",
               "ASAN_OPTIONS": "detect_leaks=0"}  # Python's own, at its end
        return run(None, command=[sys.executable, "-c", script, WEIGHTS, THREADS, *args], env=env, **how)

    def test_completion(self):
        output = self.python(cache="turbo4")
        self.assertNative(output)
        self.assertIn("Paris", output.out)

    def test_without_the_shim_nothing_loads_us(self):
        output = self.python(cache="turbo4", shim=False)
        self.assertRan(output)
        self.assertEqual(output.ours(), [])
        self.assertIn("Paris", output.out)

    def test_a_graph_in_parts_is_the_graph(self):
        # As programs do that look at every node (imatrix, eval-callback): exact rows, the mean and the profile must not take each part for a batch.
        seen = set()
        for cache in ("turbo3:sink=4:window=16:mean=64", "turbo3:window=16", "turbo3:sink=4", "turbo3:mean=64", "turbo3:sink=4:profile=auto"):
            with self.subTest(cache):
                lengths = (560, 1, 9) if "auto" in cache else (100, 1, 1, 4, 1, 9)
                whole, parts = (self.python(PARTS, how, *map(str, lengths), cache=cache) for how in ("whole", "parts"))
                self.assertNative(whole)
                stats = self.assertActive(parts)
                self.assertEqual(stats["generic_ops"], 0, parts)
                self.assertGreater(stats["graphs"], 10 * whole.stats()["graphs"])
                self.assertEqual(stats["means_measured"], whole.stats()["means_measured"])
                self.assertEqual([s["self_profiles"] for s in (stats, whole.stats())], [int("auto" in cache)] * 2)
                self.assertEqual(parts.out, whole.out)
                seen.add(whole.out)
        self.assertEqual(len(seen), 5)


if __name__ == "__main__":
    if not PACKAGE.is_dir():
        print(f"skipped: not there: {PACKAGE}")
        sys.exit(77)
    main("libllama.so")
