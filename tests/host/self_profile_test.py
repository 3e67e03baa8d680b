"""profile=auto inside stock programs: when it calibrates, what it is worth, states, and what it does without queries."""
from harness import MODEL, Divergence, HostTest, Server, complete, counting, main

PLAIN = "turbo3:sink=4"
CACHE = PLAIN + ":profile=auto"
COUNTING = counting(70)  # about 280 tokens of the default model
LONG = counting(140)  # about 600
N = 10


class SelfProfile(HostTest):
    def assertProfiles(self, output, n):
        stats = self.assertNative(output)
        self.assertEqual(stats["self_profiles"], n, output)
        self.assertEqual(sum("profile=auto: calibrated on the first" in line for line in output.ours()), n, output)
        return stats

    def test_a_long_prompt_calibrates_and_a_short_one_does_not(self):
        long = complete(LONG, N, "-c", 1024, cache=CACHE)
        self.assertProfiles(long, 1)
        self.assertIn("141, 142", long.out[len(LONG):])
        self.assertEqual(long.out, complete(LONG, N, "-c", 1024, cache=CACHE).out)
        short = complete(counting(25), N, cache=CACHE)  # 99 tokens
        self.assertProfiles(short, 0)
        self.assertEqual(short.out, complete(counting(25), N, cache=PLAIN).out)

    def test_tokens_that_are_generated_count(self):
        # A prompt of nearly 512 tokens; the others come one by one.
        fine = CACHE.replace("turbo3", "turbo4")  # a text that is read as stock reads it
        self.assertProfiles(complete(counting(118), 2, "-c", 1024, cache=fine), 0)
        output = complete(counting(118), 80, "-c", 1024, cache=fine)
        self.assertIn("119, 120", output.out)
        self.assertProfiles(output, 1)

    def test_it_makes_the_rest_of_a_text_better(self):
        # Judged are tokens 512 to 1023 of which those after the first 640 are read and written with the profile.
        how = {"ctx": 1024, "chunks": 1}
        plain, auto = (Divergence("-ub", 128, cache=cache, **how) for cache in (PLAIN, CACHE))
        self.assertProfiles(auto.output, 1)
        self.assertLess(auto.kld + auto.kld_se, plain.kld - plain.kld_se, f"{plain}; with profile=auto {auto}")

    def test_saved_states(self):
        with Server("-c", 2048, "-np", 2, "-no-kvu", "-cram", 0, "--slot-save-path", self.folder, cache=CACHE, model=MODEL) as server:
            server.complete(COUNTING, 0, slot=1)  # rows from before the profile
            self.assertEqual(server.slot(1, "save", filename="before")[0], 200)
            server.slot(1, "erase")
            self.assertEqual(server.slot(1, "restore", filename="before")[0], 200)
            server.complete(LONG, 1, slot=0)  # makes the profile
            answer = server.complete(COUNTING, N, slot=1)  # on restored rows, coded again
            self.assertLess(answer["timings"]["prompt_n"], 5, answer)
            self.assertIn("71, 72", answer["content"])
            server.slot(0, "erase")
            undisturbed = server.complete(COUNTING, N, slot=0)["content"]
            self.assertIn("71, 72", undisturbed)
            server.slot(0, "erase")
            server.complete(COUNTING, 0, slot=0)
            self.assertEqual(server.slot(0, "save", filename="first")[0], 200)
            for slot in (0, 1):
                with self.subTest(slot=slot):
                    server.complete("Something else altogether.", 4, slot=slot)
                    server.slot(slot, "erase")
                    self.assertEqual(server.slot(slot, "restore", filename="first")[0], 200)
                    self.assertEqual(server.slot(slot, "save", filename="again")[0], 200)
                    if slot == 0:
                        self.assertTrue((self.folder / "again").read_bytes() == (self.folder / "first").read_bytes())
                    answer = server.complete(COUNTING, N, slot=slot)
                    self.assertLess(answer["timings"]["prompt_n"], 5, answer)
                    self.assertEqual(answer["content"], undisturbed)
            self.assertProfiles(server.stop(), 1)

    def test_one_profile_of_many_requests(self):
        with Server("-c", 1024, "-np", 2, "-kvu", "-cram", 0, cache=CACHE) as server:
            for first in range(20, 24):
                server.complete(f"The number {first} comes before the number, " + COUNTING, 2, cache_prompt=False)
            self.assertIn("71, 72", server.complete(COUNTING, N)["content"])
            self.assertProfiles(server.stop(), 1)

    def test_without_flash_attention_it_goes_on_without(self):
        output = complete(COUNTING, N, "-fa", "off", cache=CACHE)
        self.assertRan(output)
        self.assertIn("71, 72", output.out)
        self.assertEqual(output.stats()["self_profiles"], 0)
        self.assertEqual(sum("profile=auto is off: block 0 shows no values" in line for line in output.ours()), 1, output)

    def test_layers_of_f16_are_left_alone_and_a_measured_mean_gives_way(self):
        for cache, means in ((CACHE + ":first=f16x2:last=f16x1", 0), (PLAIN + ":mean=64:profile=auto", 1), ("k=turbo4:v=f16:profile=auto", 0)):
            with self.subTest(cache):
                output = complete(LONG, N, "-c", 1024, cache=cache)
                self.assertIn("141, 142", output.out[len(LONG):])
                stats = self.assertActive(output)
                self.assertEqual((stats["self_profiles"], stats["generic_ops"], stats["fallback_ops"]), (1, 0, 0), output)
                self.assertEqual(stats["means_measured"], means * 30 if output.tensors()[1] == 60 else stats["means_measured"], output)


if __name__ == "__main__":
    main("llama-completion", "llama-perplexity", "llama-server")
