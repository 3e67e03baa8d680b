"""llama-server on a compressed cache: requests, slots, saved slots, context shift, copies of a sequence."""
from harness import COUNTED, COUNTING, MODEL, NEXT, HostTest, Server, counting, in_parallel, main

N = 10


class Serving(HostTest):
    def serve(self, *args, **how):
        return Server("-c", 1024, "--slot-save-path", self.folder, "-cram", 0, *args, **how)

    def assertStopped(self, server):
        """It ended in order, and its report stands."""
        output = server.stop()
        stats = self.assertActive(output)
        print({k: stats[k] for k in ("native_writes", "native_attention", "generic_ops", "fallback_ops", "rows_read", "rows_written")}, flush=True)
        return stats

    def test_two_slots_at_once(self):
        prompts = {"The capital of France is": "Paris", "The capital of Italy is": "Rome"}
        for more in (["-no-kvu"], ["-kvu"]):
            with self.subTest(more), self.serve("-np", 2, *more, model=MODEL) as server:
                alone = [server.complete(p, 4, slot=i)["content"] for i, p in enumerate(prompts)]
                both = in_parallel(*(lambda p=p, i=i: server.complete(p, 40, slot=i, ignore_eos=True) for i, p in enumerate(prompts)))
                for expected, first, answer in zip(prompts.values(), alone, both):
                    self.assertIn(expected, first)
                    self.assertIn(expected, answer["content"][:40])
                    self.assertEqual(answer["tokens_predicted"], 40)
                self.assertStopped(server)
                self.assertNative(server.output)

    def slot_file(self, name):
        return (self.folder / name).read_bytes()

    def test_saved_slots(self):
        with self.serve("-np", 2, "-no-kvu") as server:
            undisturbed = server.complete(COUNTING, N, slot=0)["content"]
            self.assertIn(NEXT, undisturbed)
            self.assertEqual(server.slot(0, "erase")[0], 200)
            server.complete(COUNTING, 0, slot=0)
            status, saved = server.slot(0, "save", filename="first")
            self.assertEqual(status, 200, saved)
            self.assertGreater(saved["n_saved"], 3 * COUNTED)
            for slot in (0, 1):
                with self.subTest(slot=slot):
                    server.complete("Something else altogether.", 4, slot=slot)
                    server.slot(slot, "erase")
                    status, restored = server.slot(slot, "restore", filename="first")
                    self.assertEqual((status, restored.get("n_restored")), (200, saved["n_saved"]), restored)
                    # decode(encode(·)) of a saved state is the state: the same bytes again, also by way of the other slot's rows (whose
                    # file differs in the slot numbers that the host writes into it).
                    self.assertEqual(server.slot(slot, "save", filename="again")[0], 200)
                    if slot != 0:
                        self.assertEqual(server.slot(0, "restore", filename="again")[0], 200)
                        self.assertEqual(server.slot(0, "save", filename="again")[0], 200)
                    self.assertTrue(self.slot_file("again") == self.slot_file("first"))
                    answer = server.complete(COUNTING, N, slot=slot)
                    self.assertLess(answer["timings"]["prompt_n"], 5, answer)  # the rest came from the file
                    self.assertEqual(answer["content"], undisturbed)
            self.assertStopped(server)
        # A stock server takes the file and gives the same file back; and so do we with what it wrote.
        with self.serve("-np", 2, "-no-kvu", cache=None) as stock:
            self.assertEqual(stock.slot(0, "restore", filename="first")[0], 200)
            stock.slot(0, "save", filename="stock")
            self.assertTrue(self.slot_file("stock") == self.slot_file("first"))
            self.assertEqual(stock.complete(COUNTING, N, slot=0)["content"], undisturbed)
            stock.slot(1, "erase")
            stock.complete(COUNTING, 0, slot=1)
            stock.slot(1, "save", filename="never compressed")
            self.assertRan(stock.stop())
            self.assertEqual(stock.output.ours(), [])
        with self.serve("-np", 2, "-no-kvu") as server:
            self.assertEqual(server.slot(1, "restore", filename="never compressed")[0], 200)
            self.assertEqual(server.complete(COUNTING, N, slot=1)["content"], undisturbed)
            # Damage: refused with an answer, and the server lives on.
            (self.folder / "short").write_bytes(self.slot_file("first")[:-1000])
            (self.folder / "wrong").write_bytes(b"\xff" * 5000)
            for name in ("short", "wrong", "missing"):
                self.assertGreaterEqual(server.slot(0, "restore", filename=name)[0], 400)
            self.assertEqual(server.complete(COUNTING, N, slot=0)["content"], undisturbed)
            self.assertStopped(server)

    def test_context_shift(self):
        # 256 cells are the host's fewest, whatever SLOWDOWN says.
        with Server("-c", 256, "-np", 1, "--context-shift", "-cram", 0, model=MODEL) as server:
            answer = server.complete(counting(60), 180, n_keep=16, ignore_eos=True)
            self.assertEqual(answer["tokens_predicted"], 180, answer)
            self.assertTrue(answer["truncated"], answer)
            self.assertRegex(answer["content"][:40], "61, 62, 63")
            # The first shift comes 13 tokens in; a model whose keys were turned wrongly loses count.
            self.assertIn("70, 71, 72, 73, 74, 75, 76, 77", answer["content"])
            stats = self.assertStopped(server)
        self.assertGreater(stats["generic_ops"], 0)  # K-shift turns the keys in place

    def test_copies_of_a_sequence(self):
        # The prompt is computed once and its cells are copied to the other slots: between streams, or shared.
        for more in (["-no-kvu"], ["-kvu"]):
            with self.subTest(more), self.serve("-np", 3, *more) as server:
                alone = server.complete(COUNTING, N, slot=0)["content"]
                self.assertIn(NEXT, alone)
                answers = server.complete(COUNTING, N, n_cmpl=3)
                self.assertEqual([a["content"] for a in answers], [alone] * 3)
                self.assertStopped(server)


if __name__ == "__main__":
    main("llama-server")
