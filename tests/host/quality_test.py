"""What the formats cost, by stock llama-perplexity's own comparison with stock logits on the same tokens.

Bounds. A cache format has a mean KL divergence D of its own (SmolLM2, wikitext, ctx 512: turbo4 .048, turbo3 .209, turbo2 1.05). Text, model
weights and machine differ here: a factor 2 each way, and 3 standard errors of the measured mean. On text that the model predicts as well
as itself E[ln p/q] over the text is D too, so ln(PPL/PPL stock) has the same upper bound, plus 3 of its own standard errors.
8-bit codes are far finer than the rounding of the quantised weights' own activations, which sets a floor that stock q8_0 shows: turbo8 is
held to twice that.
"""
from harness import MODEL, Divergence, HostTest, final_ppl, main, perplexity

KLD = {"turbo4": 0.048, "turbo3": 0.209, "turbo2": 1.05}
SLACK = 2.0


def violations(d, expected):
    """What in a measurement contradicts a format's expected divergence."""
    found = []
    if d.kld > SLACK * expected + 3 * d.kld_se:
        found.append("kld too high")
    if d.kld < expected / SLACK - 3 * d.kld_se:
        found.append("kld too low")
    if d.dln > SLACK * expected + 3 * d.dln_se:
        found.append("perplexity too high")
    return found


class Quality(HostTest):
    measured = {}

    def measure(self, cache):
        if cache not in self.measured:
            d = self.measured[cache] = Divergence(cache=cache)
            print(f"{cache}: {d}", flush=True)
            self.assertNative(d.output)
        return self.measured[cache]

    def test_formats_stay_within_their_bounds(self):
        for cache, expected in KLD.items():
            with self.subTest(cache):
                d = self.measure(cache)
                self.assertEqual(violations(d, expected), [], f"{cache}: {d}")

    def test_turbo8_is_as_good_as_q8_0(self):
        d, stock = self.measure("turbo8"), Divergence("-ctk", "q8_0", "-ctv", "q8_0", cache=None)
        print(f"stock q8_0: {stock}", flush=True)
        self.assertLess(d.kld, 2 * stock.kld + 3 * (d.kld_se + stock.kld_se))
        self.assertGreater(d.kld, 0)
        self.assertLess(abs(d.dln), 0.015)

    def test_decode_kernel(self):
        # One token per graph: the kernel of generation instead of that of prompts, same bounds, and the same divergence within 3 errors.
        for cache in ("turbo4", "turbo3", "turbo2"):
            with self.subTest(cache):
                batched = Divergence(cache=cache, ctx=128, chunks=2, model=MODEL)
                decode = Divergence("-ub", 1, cache=cache, ctx=128, chunks=2, model=MODEL)
                print(f"{cache}: batched {batched}; decode {decode}", flush=True)
                self.assertGreater(self.assertNative(decode.output)["graphs"], 256)
                self.assertEqual(violations(decode, KLD[cache]), [], f"{cache}: {decode}")
                self.assertLess(abs(decode.kld - batched.kld), 3 * (decode.kld_se**2 + batched.kld_se**2) ** 0.5)

    def test_keys_and_values_have_formats_of_their_own(self):
        # The two errors add up within their standard errors. If either side took the other's format, the sum would be twice the whole.
        both, k, v = self.measure("turbo3"), self.measure("k=turbo3:v=turbo8"), self.measure("k=turbo8:v=turbo3")
        error = 3 * (both.kld_se**2 + k.kld_se**2 + v.kld_se**2) ** 0.5
        self.assertLess(abs(k.kld + v.kld - both.kld), error)
        self.assertGreater(both.kld, error)  # the comparison has power
        for d in (k, v):
            self.assertGreater(d.kld, 2 * self.measure("turbo8").kld)

    def test_negative_control(self):
        # The comparison has power: no format passes for its better neighbour.
        self.assertIn("kld too high", violations(self.measure("turbo2"), KLD["turbo4"]))
        self.assertIn("perplexity too high", violations(self.measure("turbo2"), KLD["turbo4"]))
        self.assertIn("kld too high", violations(self.measure("turbo2"), KLD["turbo3"]))
        self.assertIn("kld too high", violations(self.measure("turbo3"), KLD["turbo4"]))
        self.assertIn("kld too low", violations(self.measure("turbo8"), KLD["turbo4"]))
        self.assertIn("kld too low", violations(self.measure("turbo3"), KLD["turbo2"]))

    def test_off_is_stock_to_the_last_digit(self):
        stock, off = perplexity(ctx=256, chunks=2, cache=None), perplexity(ctx=256, chunks=2, cache="off")
        self.assertRan(stock)
        self.assertRan(off)
        self.assertTrue(off.start_line().startswith("tightkv: active, "), off)
        self.assertEqual(off.stats()["native_writes"] + off.stats()["generic_ops"], 0, off)
        self.assertEqual(final_ppl(off), final_ppl(stock))


if __name__ == "__main__":
    main("llama-perplexity")
