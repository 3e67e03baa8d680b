"""The stock programs run on a compressed cache, all of it natively."""
import json
import re
import unittest

from harness import DYNAMIC, MODEL, THREADS, HostTest, complete, final_ppl, main, perplexity, run


class Programs(HostTest):
    def bench(self, **how):
        output = run("llama-bench", "-m", MODEL, "-p", 32, "-n", 8, "-d", "0,64", "-t", THREADS, "-r", 1, "-fa", 1, "-o", "json", **how)
        self.assertNative(output)
        tests = [(t["n_prompt"], t["n_gen"], t["n_depth"]) for t in json.loads(output.out) if t["avg_ts"] > 0]
        self.assertEqual(tests, [(32, 0, 0), (0, 8, 0), (32, 0, 64), (0, 8, 64)], output)

    def test_bench(self):
        self.bench()

    def test_bench_by_the_variable_alone(self):
        self.bench(shim=False)

    def test_completion(self):
        output = complete("The capital of France is", 12)
        self.assertNative(output)
        self.assertIn("The capital of France is Paris", output.out)

    def test_perplexity(self):
        compressed, stock = perplexity(ctx=256, chunks=1), perplexity(ctx=256, chunks=1, cache=None)
        self.assertNative(compressed)
        self.assertEqual(stock.ours(), [], stock)
        # The bound is the business of quality_test; here: it is neither the stock cache nor nonsense.
        self.assertNotEqual(final_ppl(compressed), final_ppl(stock))
        self.assertLess(float(final_ppl(compressed)), 1.25 * float(final_ppl(stock)))

    @unittest.skipIf(DYNAMIC, "this host has no llama-batched-bench")
    def test_batched_bench(self):
        for more in ([], ["-kvu"]):
            with self.subTest(more):
                output = run("llama-batched-bench", "-m", MODEL, "-c", 512, "-b", 256, "-t", THREADS, "-npp", 48, "-ntg", 6, "-npl", "1,3", *more)
                self.assertNative(output)
                rows = re.findall(r"^\|\s+48 \|\s+6 \|\s+(\d) \|\s+(\d+) \|", output.out, re.M)
                self.assertEqual(rows, [("1", "54"), ("3", "162")], output)

    @unittest.skipIf(DYNAMIC, "the variable alone is enough there")
    def test_without_the_shim_only_bench_asks_for_backends(self):
        # What docs and `tightkv run` are for. Should a host load us one day, this says so.
        output = complete("The capital of France is", 2, shim=False)
        self.assertRan(output)
        self.assertEqual(output.ours(), [], output)


if __name__ == "__main__":
    main("llama-bench", "llama-completion", "llama-perplexity", *([] if DYNAMIC else ["llama-batched-bench"]))
