"""One instruction set (TIGHTKV_TEST_ISA: avx2, avxvnni or avx512) against the scalar reference, inside a host.

Encoders are bit-exact across levels and attention agrees within f32 rounding: the library's tests show that on equal inputs. In a model the
rounding moves the next layer's rows, a few of their codes flip, and 30 layers later two levels are two samples of the format's own noise. So:
with 8-bit codes the difference stays at the floor that stock q8_0 against stock f16 has; with coarse codes it stays below the sum of both
noises, twice the format's divergence; and each level by itself is as far from stock as the format says.
"""
import os

from harness import Divergence, HostTest, complete, main

ISA = os.environ.get("TIGHTKV_TEST_ISA") or "avx2"
SIZE = {"ctx": 256, "chunks": 1}
KLD = {"turbo4": 0.048, "turbo3": 0.209}


class Isa(HostTest):
    def setUp(self):
        super().setUp()
        probe = complete("One", 1, env={"TIGHTKV_ISA": ISA})
        if f"kernels {ISA}," not in probe.start_line():
            self.skipTest(f"no {ISA} here: {probe.ours()[0] if probe.ours() else probe}")

    def against_scalar(self, cache, scalar_cache=None):
        d = Divergence(base_how={"cache": scalar_cache or cache, "env": {"TIGHTKV_ISA": "scalar"}}, cache=cache,
                       env={"TIGHTKV_ISA": ISA}, **SIZE)
        self.assertNative(d.output)
        self.assertIn(f"kernels {ISA},", d.output.start_line())
        print(f"{cache}: {ISA} against scalar {d}", flush=True)
        return d

    def test_fine_codes(self):
        d, floor = self.against_scalar("turbo8"), Divergence("-ctk", "q8_0", "-ctv", "q8_0", cache=None, **SIZE)
        limit = 2 * floor.kld + 3 * (d.kld_se + floor.kld_se)
        self.assertLess(d.kld, limit)
        # Negative control: another format is not taken for a rounding difference.
        self.assertGreater(self.against_scalar("turbo4", scalar_cache="turbo8").kld, limit)

    def test_coarse_codes(self):
        for cache, expected in KLD.items():
            with self.subTest(cache):
                d = self.against_scalar(cache)
                self.assertLess(d.kld, 2 * expected + 3 * d.kld_se)
                for isa in ("scalar", ISA):
                    own = Divergence(cache=cache, env={"TIGHTKV_ISA": isa}, **SIZE)
                    self.assertIn(f"kernels {isa},", own.output.start_line())
                    self.assertLess(own.kld, 2 * expected + 3 * own.kld_se)
                    self.assertGreater(own.kld, expected / 2 - 3 * own.kld_se)


if __name__ == "__main__":
    main("llama-perplexity", "llama-completion")
