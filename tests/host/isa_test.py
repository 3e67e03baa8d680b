"""Every instruction set (TIGHTKV_TEST_ISA: avx2, avxvnni, avx512vnni, avx512) against the scalar reference, inside a host.

Encoders are bit-exact across levels and attention agrees within f32 rounding: the library's tests show that on equal inputs. In a model the
rounding moves the next layer's rows, a few of their codes flip, and 30 layers later two levels are two samples of the format's own noise. So:
with 8-bit codes the difference stays at the floor that stock q8_0 against stock f16 has; with coarse codes it stays below the sum of both
noises, twice the format's divergence; and each level by itself is as far from stock as the format says.
"""
import os

from harness import Divergence, HostTest, complete, main

LEVELS = (os.environ.get("TIGHTKV_TEST_ISA") or "avx2 avxvnni avx512vnni avx512").split()
SIZE = {"ctx": 256, "chunks": 1}
KLD = {"turbo4": 0.048, "turbo3": 0.209}


class Isa(HostTest):
    @classmethod
    def setUpClass(cls):
        cls.levels = []
        for isa in LEVELS:
            probe = complete("One", 1, env={"TIGHTKV_ISA": isa})
            if f"kernels {isa}," in probe.start_line():
                cls.levels.append(isa)
            else:
                print(f"skipped: no {isa} here: {probe.ours()[0] if probe.ours() else probe}", flush=True)

    def setUp(self):
        super().setUp()
        if not self.levels:
            self.skipTest(f"none of {' '.join(LEVELS)} here")

    def against_scalar(self, isa, cache, scalar_cache=None):
        d = Divergence(base_how={"cache": scalar_cache or cache, "env": {"TIGHTKV_ISA": "scalar"}}, cache=cache,
                       env={"TIGHTKV_ISA": isa}, **SIZE)
        self.assertNative(d.output)
        self.assertIn(f"kernels {isa},", d.output.start_line())
        print(f"{cache}: {isa} against scalar {d}", flush=True)
        return d

    def test_fine_codes(self):
        floor = Divergence("-ctk", "q8_0", "-ctv", "q8_0", cache=None, **SIZE)
        for isa in self.levels:
            with self.subTest(isa):
                d = self.against_scalar(isa, "turbo8")
                limit = 2 * floor.kld + 3 * (d.kld_se + floor.kld_se)
                self.assertLess(d.kld, limit)
        # Negative control: another format is not taken for a rounding difference.
        self.assertGreater(self.against_scalar(self.levels[-1], "turbo4", scalar_cache="turbo8").kld, limit)

    def test_coarse_codes(self):
        for cache, expected in KLD.items():
            for isa in self.levels:
                with self.subTest(f"{cache}, {isa}"):
                    d = self.against_scalar(isa, cache)
                    self.assertLess(d.kld, 2 * expected + 3 * d.kld_se)
            for isa in ("scalar", *self.levels):
                with self.subTest(f"{cache}, {isa} against stock"):
                    own = Divergence(cache=cache, env={"TIGHTKV_ISA": isa}, **SIZE)
                    self.assertIn(f"kernels {isa},", own.output.start_line())
                    self.assertLess(own.kld, 2 * expected + 3 * own.kld_se)
                    self.assertGreater(own.kld, expected / 2 - 3 * own.kld_se)


if __name__ == "__main__":
    main("llama-perplexity", "llama-completion")
