"""Caches of which only a part is compressed: flash attention off, quantised cache types of the host, layers that stay f16.

Bounds as in quality_test. A reader that takes one side's bytes for the other's format gives perplexities in the thousands.
"""
from harness import Divergence, HostTest, complete, final_ppl, main, perplexity

TURBO4 = 0.048
SIZE = {"ctx": 256, "chunks": 2}


class CacheTypes(HostTest):
    def measure(self, *args, compressed):
        d = Divergence(*args, **SIZE)
        print(f"{' '.join(args)}: {d}", flush=True)
        self.assertRan(d.output)
        self.assertTrue(d.output.start_line().startswith("tightkv: active, "), d.output)
        self.assertEqual(d.output.tensors(), compressed, d.output)
        stats = d.output.stats()
        self.assertGreater(stats["native_writes"], 0, d.output)
        self.assertGreater(stats["generic_ops"], 0, d.output)  # attention goes by way of f16
        self.assertLess(d.kld, 2 * TURBO4 + 3 * d.kld_se)
        return d

    def assertLeftToTheHost(self, output, what):
        said = [line for line in output.ours() if "left to the host; tightkv compresses f16 caches" in line]
        self.assertEqual(said, [f"tightkv: {what} left to the host; tightkv compresses f16 caches"], output)

    def test_flash_attention_off(self):
        d = self.measure("-fa", "off", compressed=(30, 60))
        self.assertGreater(d.kld, TURBO4 / 3)  # the keys are compressed

    def test_keys_of_the_host(self):
        # The values' share of turbo4's divergence is small, but above the floor of 8 bits.
        d = self.measure("-ctk", "q8_0", compressed=(30, 30))
        self.assertLeftToTheHost(d.output, "keys of type q8_0")
        self.assertGreater(d.kld, 2 * self.floor().kld - 3 * d.kld_se)

    def test_values_of_the_host(self):
        d = self.measure("-ctv", "q8_0", compressed=(30, 30))
        self.assertLeftToTheHost(d.output, "values of type q8_0")
        self.assertGreater(d.kld, TURBO4 / 3)

    def test_layers_that_the_specification_leaves_exact(self):
        # Ours all the same, and native; the line does not call them compressed.
        output = complete("The capital of France is", 4, cache="turbo4:first=f16x2:last=turbo8x1")
        stats = self.assertActive(output)
        self.assertEqual(output.tensors(), (56, 60), output)
        self.assertIn("56 of 60 tensors compressed, 4 f16 by the specification, head_dim 64/64, ", output.err)
        self.assertEqual((stats["generic_ops"], stats["fallback_ops"]), (0, 0), output)

    def floor(self):
        return Divergence("-ctk", "q8_0", "-ctv", "q8_0", cache=None, **SIZE)

    def test_all_of_the_host(self):
        both = "-ctk", "q8_0", "-ctv", "q8_0"
        ours, stock = perplexity(*both, **SIZE), perplexity(*both, cache=None, **SIZE)
        self.assertRan(ours)
        self.assertTrue(ours.start_line().startswith("tightkv: active, "), ours)
        self.assertEqual(ours.stats()["native_writes"] + ours.stats()["generic_ops"], 0, ours)
        self.assertLeftToTheHost(ours, "cache of type q8_0")
        self.assertEqual(final_ppl(ours), final_ppl(stock))


if __name__ == "__main__":
    main("llama-perplexity", "llama-completion")
