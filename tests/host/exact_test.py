"""Exact rows and the keys' mean inside stock programs: states, shifts, copies, many requests, mixed types."""
import re
import shutil

from harness import COUNTING, DYNAMIC, MODEL, THREADS, HostTest, Server, complete, final_ppl, in_parallel, main, perplexity, run

CACHE = "turbo3:sink=4:window=32:mean=64"
N = 10


class Exact(HostTest):
    def serve(self, *args, cache=CACHE, **how):
        return Server("-c", 1024, "--slot-save-path", self.folder, "-cram", 0, *args, cache=cache, **how)

    def assertMeans(self, output):
        """Everything native, and every key tensor had its mean taken off."""
        stats = self.assertNative(output)
        self.assertEqual(2 * stats["means_measured"], output.tensors()[1], output)
        return stats

    def test_completion(self):
        output = complete(COUNTING, N, cache=CACHE)
        self.assertMeans(output)
        self.assertIn("61, 62", output.out)
        self.assertEqual(output.out, complete(COUNTING, N, cache=CACHE).out)

    def test_a_window_over_everything_is_an_f16_cache(self):
        # All rows are exact: the digits of our own f16 cache, whatever the codes are. The window may be larger than the context; it is said.
        exact = perplexity(ctx=256, chunks=1, cache="f16")
        for cache in ("turbo2:window=4096", "turbo4:window=256:sink=4"):
            with self.subTest(cache):
                wide = perplexity(ctx=256, chunks=1, cache=cache)
                self.assertNative(wide)
                self.assertEqual(final_ppl(wide), final_ppl(exact))
                self.assertEqual(sum("covers all 256 cells of a cache: every row of it is exact" in line for line in wide.ours()), 1, wide)
        self.assertNotEqual(final_ppl(perplexity(ctx=256, chunks=1, cache="turbo2:window=32")), final_ppl(exact))

    def test_every_part_helps_or_does_nothing(self):
        # The bounds are quality_test's business; here: the parts reach the computation, and none makes nonsense of it.
        stock = float(final_ppl(perplexity(ctx=256, chunks=1, cache=None)))
        seen = {}
        for parts in ("", ":sink=4", ":window=32", ":mean=64", ":sink=4:mean=64"):
            output = perplexity(ctx=256, chunks=1, cache="turbo2" + parts)
            self.assertNative(output)
            seen[parts] = float(final_ppl(output))
        self.assertEqual(len(set(seen.values())), len(seen), seen)
        for parts in (":window=32", ":sink=4:mean=64"):  # sinks alone gain nothing that shows (docs/quality.md)
            self.assertLess(abs(seen[parts] - stock), abs(seen[""] - stock), (stock, seen))

    def test_saved_states(self):
        # Restored into the process that saved, this slot or another: the same text. The file is stock's own format.
        with self.serve("-np", 2, "-no-kvu") as server:
            server.complete(COUNTING, 1, slot=0)  # measures the mean
            server.slot(0, "erase")
            undisturbed = server.complete(COUNTING, N, slot=0)["content"]
            self.assertIn("61, 62", undisturbed)
            server.slot(0, "erase")
            server.complete(COUNTING, 0, slot=0)
            self.assertEqual(server.slot(0, "save", filename="first")[0], 200)
            first = (self.folder / "first").read_bytes()
            for slot in (0, 1):
                with self.subTest(slot=slot):
                    server.complete("Something else altogether.", 4, slot=slot)
                    server.slot(slot, "erase")
                    self.assertEqual(server.slot(slot, "restore", filename="first")[0], 200)
                    self.assertEqual(server.slot(slot, "save", filename="again")[0], 200)  # before any graph: exact rows and all
                    if slot == 0:
                        self.assertTrue((self.folder / "again").read_bytes() == first)
                    answer = server.complete(COUNTING, N, slot=slot)
                    self.assertLess(answer["timings"]["prompt_n"], 5, answer)
                    self.assertEqual(answer["content"], undisturbed)
            self.assertMeans(server.stop())
        with self.serve("-np", 2, "-no-kvu", cache=None) as stock:
            self.assertEqual(stock.slot(0, "restore", filename="first")[0], 200)
            stock.slot(0, "save", filename="stock")
            self.assertTrue((self.folder / "stock").read_bytes() == first)
            self.assertIn("61, 62", stock.complete(COUNTING, N, slot=0)["content"])
            stock.slot(1, "erase")
            stock.complete(COUNTING, 0, slot=1)
            stock.slot(1, "save", filename="never compressed")
        with self.serve("-np", 2, "-no-kvu") as server:  # restored before the mean is known: coded again when it is
            self.assertEqual(server.slot(1, "restore", filename="never compressed")[0], 200)
            server.complete("A short one", 1, slot=0)
            answer = server.complete(COUNTING + " 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80,", N, slot=1)
            self.assertGreater(answer["timings"]["cache_n"] if "cache_n" in answer["timings"] else 100, 50, answer)
            self.assertRegex(answer["content"], "81, 82")
            self.assertMeans(server.stop())

    def test_states_of_another_process(self):
        # Codes and exact rows go through the file bit for bit: another process has the same state and says the same as this one would.
        for cache in ("turbo3t:sink=4:window=32", "turbo2:sink=2:window=8"):
            with self.subTest(cache):
                with self.serve("-np", 1, cache=cache) as server:
                    server.complete(COUNTING, 0)
                    self.assertEqual(server.slot(0, "save", filename="first")[0], 200)
                    server.slot(0, "erase")
                    self.assertEqual(server.slot(0, "restore", filename="first")[0], 200)
                    undisturbed = server.complete(COUNTING, 3 * N, ignore_eos=True)["content"]
                with self.serve("-np", 1, cache=cache) as server:
                    self.assertEqual(server.slot(0, "restore", filename="first")[0], 200)
                    self.assertEqual(server.slot(0, "save", filename="again")[0], 200)
                    self.assertTrue((self.folder / "again").read_bytes() == (self.folder / "first").read_bytes())
                    answer = server.complete(COUNTING, 3 * N, ignore_eos=True)
                    self.assertLess(answer["timings"]["prompt_n"], 5, answer)
                    self.assertEqual(answer["content"], undisturbed)
                    self.assertNative(server.stop())

    def test_prompt_cache_of_stock_and_back(self):
        path = self.folder / "state"
        first = complete(COUNTING, N, "--prompt-cache", path, cache=CACHE)
        self.assertMeans(first)
        for cache in (CACHE, None):
            copy = self.folder / "copy"
            shutil.copy(path, copy)
            again = complete(COUNTING, N, "--prompt-cache", copy, "--prompt-cache-ro", cache=cache)
            self.assertRan(again)
            self.assertIn("session file has exact match for prompt", again.err)
            self.assertIn("61, 62", again.out)

    def test_context_shift(self):
        with Server("-c", 256, "-np", 1, "--context-shift", "-cram", 0, cache="turbo4:sink=4:window=32:mean=64", model=MODEL) as server:
            answer = server.complete(COUNTING, 180, n_keep=16, ignore_eos=True)
            self.assertTrue(answer["truncated"], answer)
            self.assertRegex(answer["content"][:40], "61, 62, 63")
            self.assertIn("70, 71, 72, 73, 74, 75, 76, 77", answer["content"])
            output = server.stop()
        stats = self.assertActive(output)
        self.assertGreater(stats["generic_ops"], 0)

    def test_shift_of_a_restored_state(self):
        # A prompt that lost its middle: the host moves the end's keys before it computes anything. Restored rows that still wait for their
        # slots are turned like the others.
        begin, end = "The numbers from one to one hundred: 1, 2, 3, 4, 5,", " " + ", ".join(map(str, range(6, 61))) + ","
        whole = begin + " as everybody knows who has ever counted up to one hundred, which is not hard to do at all," + end
        with self.serve("-np", 1, "--cache-reuse", 8, cache="turbo4:sink=4:window=64") as server:
            server.complete(whole, 0)
            self.assertEqual(server.slot(0, "save", filename="whole")[0], 200)
            undisturbed = server.complete(begin + end, N)
            self.assertLess(undisturbed["timings"]["prompt_n"], 20, undisturbed)
            self.assertIn("61, 62", undisturbed["content"])
            server.slot(0, "erase")
            self.assertEqual(server.slot(0, "restore", filename="whole")[0], 200)
            answer = server.complete(begin + end, N)
            self.assertLess(answer["timings"]["prompt_n"], 20, answer)
            self.assertEqual(answer["content"], undisturbed["content"])
            self.assertGreater(self.assertActive(server.stop())["generic_ops"], 0)

    def test_copies_of_a_sequence(self):
        for more in (["-no-kvu"], ["-kvu"]):
            with self.subTest(more), self.serve("-np", 3, *more) as server:
                server.complete(COUNTING, 1, slot=0)
                server.slot(0, "erase")
                alone = server.complete(COUNTING, N, slot=0)["content"]
                self.assertIn("61, 62", alone)
                for answer in server.complete(COUNTING, N, n_cmpl=3):
                    self.assertEqual(answer["content"], alone)
                self.assertMeans(server.stop())

    def test_many_requests_in_the_same_cells(self):
        prompts = [f"The number {n} comes before the number" for n in range(20, 32)]
        for more in (["-no-kvu"], ["-kvu"]):
            with self.subTest(more), self.serve("-np", 2, *more, model=MODEL) as server:
                for p in prompts[:6]:  # until the mean is known
                    server.complete(p, 8)
                again = [server.complete(p, 8, slot=0, cache_prompt=False)["content"] for p in prompts]
                self.assertEqual([server.complete(p, 8, slot=0, cache_prompt=False)["content"] for p in prompts], again)
                both = in_parallel(*(lambda i=i: server.complete(COUNTING, N, slot=i)["content"] for i in range(2)))
                for text in both:
                    self.assertIn("61, 62", text)
                self.assertMeans(server.stop())

    def test_draft_tokens_are_verified_in_one_batch(self):
        cache = "turbo4:sink=4:window=32"
        with self.serve("-np", 1, cache=cache, model=MODEL) as server:
            alone = server.complete(COUNTING, 24)["content"]
        options = run("llama-server", "--help", cache=None).out
        name = "--spec-draft-n" if "--spec-draft-n-max" in options else "--draft"
        more = ["--spec-type", "draft-simple"] if "draft-simple" in options else []
        # Zeros in the middle of the file are some layers that do nothing: a draft that is often wrong, whose rows are taken back.
        worse = self.folder / "worse.gguf"
        weights = bytearray(MODEL.read_bytes())
        begin, end = len(weights) * 60 // 100, len(weights) * 75 // 100
        weights[begin:end] = bytes(end - begin)
        worse.write_bytes(weights)
        any_token = [f"{option}-p-min" for option in ("--spec-draft", "--draft") if f"{option}-p-min" in options][:1]
        for draft, most in ((MODEL, 6), (worse, 3)):
            with self.subTest(draft=draft.name):
                with self.serve("-np", 1, "-md", draft, f"{name}-max", most, f"{name}-min", 1, *any_token, *([0] if any_token else []), *more,
                                cache=cache, model=MODEL) as server:
                    answer = server.complete(COUNTING, 24)
                    output = server.stop()
                self.assertNative(output)
                drafted, accepted = (answer["timings"].get(f"draft_n{which}", 0) for which in ("", "_accepted"))
                if draft == MODEL:
                    self.assertGreater(accepted, 5, answer)
                else:
                    self.assertGreater(drafted - accepted, 10, answer)
                self.assertEqual(answer["content"][:30], alone[:30])  # further on, batches round otherwise than single tokens

    def test_batched_bench(self):
        for more in ([], ["-kvu"], ["-pps"]):
            with self.subTest(more):
                output = run("llama-batched-bench", "-m", MODEL, "-c", 512, "-b", 256, "-t", THREADS, "-npp", 48, "-ntg", 6, "-npl", "1,3", *more,
                             cache=CACHE)
                self.assertMeans(output)

    def test_without_flash_attention(self):
        # K is compressed and read by way of f16, V is the host's.
        output = complete(COUNTING, N, "-fa", "off", cache=CACHE)
        self.assertRan(output)
        self.assertIn("61, 62", output.out)
        self.assertGreater(output.stats()["generic_ops"], 0, output)

    def test_mixed_types_and_boundary_layers(self):
        for cache, means in (("k=turbo4:v=f16:sink=4:window=16:mean=64", 30), ("k=f16:v=turbo4:sink=4:window=16:mean=64", 0),
                             (CACHE + ":first=f16x2:last=turbo8x1", 28)):
            with self.subTest(cache):
                output = complete(COUNTING, N, cache=cache)
                stats = self.assertActive(output)
                self.assertEqual((stats["generic_ops"], stats["fallback_ops"]), (0, 0), output)
                tensors = output.tensors()[1]
                self.assertEqual(stats["native_writes"], stats["graphs"] * tensors, output)
                self.assertEqual(2 * stats["native_attention"], stats["graphs"] * tensors, output)
                if tensors == 60:  # the default model
                    self.assertEqual(stats["means_measured"], means, output)  # of keys that are compressed
                self.assertIn("61, 62", output.out)

    def test_sizes_are_those_of_the_specification(self):
        output = complete(COUNTING, 1, cache=CACHE)
        found = re.search(r"([0-9.]+) bits per value", output.err)
        self.assertTrue(found, output)
        self.assertAlmostEqual(float(found[1]), 8 * 26 / 64 + 16 * (4 + 35) / 512, places=2)


if __name__ == "__main__":
    main("llama-completion", "llama-perplexity", "llama-server", *([] if DYNAMIC else ["llama-batched-bench"]))
