"""Whatever is wrong with what we are told or where we are loaded: one line, and the host runs stock."""
import os
import struct
import subprocess

from harness import ADAPTER, MODEL, HostTest, Output, complete, environment, main

FAKE_HOST = os.environ.get("TIGHTKV_TEST_FAKE_HOST")


def profile(layers, n_kv_heads, head_dim):
    """A profile (src/cache/profile.h) without means and matrices, of a model that nobody has."""
    def string(s):
        return struct.pack("<I", len(s)) + s.encode()

    data = b"tkvcalib" + struct.pack("<II", 1, layers) + string("llama") + string("nothing")
    for block in range(layers):
        data += struct.pack("<IIIIQ", block, head_dim, head_dim, n_kv_heads, 1) + string("") + string("") + bytes(2 * n_kv_heads)
    checksum = 0xcbf29ce484222325  # FNV-1a
    for byte in data:
        checksum = (checksum ^ byte) * 0x100000001b3 % 2**64
    return data + struct.pack("<Q", checksum)


class Refusals(HostTest):
    def stock(self):
        if not hasattr(Refusals, "stock_text"):
            Refusals.stock_text = self.assertRan(complete("The capital of France is", 8, cache=None)).out
        return self.stock_text

    def test_bad_specifications(self):
        for cache, words in {
            "": ("TIGHTKV is not set", "TIGHTKV=turbo4"),
            "nonsense": ("TIGHTKV:", "nonsense", "turbo2", "turbo3", "turbo4", "turbo8"),
            "k=turbo4:v=": ("TIGHTKV:", "turbo4"),
            "turbo4:profile=/no/such.tkv": ("TIGHTKV:", "/no/such.tkv", "No such file"),
            "turbo4:sink=4097": ("TIGHTKV:", "position 13", "4097", "0 to 4096"),
            "turbo4:window=-1": ("TIGHTKV:", "position 15", "-1", "0 to 4096"),
            "turbo4:mean=8": ("TIGHTKV:", "position 13", "'8'", "0 (off) or 16 to 4096"),
        }.items():
            with self.subTest(cache):
                output = complete("The capital of France is", 8, cache=cache)
                line = self.assertInactive(output)
                for word in words:
                    self.assertIn(word, line)
                self.assertEqual(output.out, self.stock())

    def profiled(self, *shape):
        """A run with a profile of this shape, and what the adapter said in it beside its start and its counts."""
        file = self.folder / "other.tkv"
        file.write_bytes(profile(*shape))
        output = self.assertRan(complete("The capital of France is", 8, cache=f"turbo4:profile={file}"))
        return output, file, [line for line in output.ours() if not line.startswith(("tightkv: active, ", "tightkv: stats "))]

    def test_profile_of_another_shape(self):
        output, file, lines = self.profiled(1, 1, 1024)
        self.assertEqual(len(lines), 1, output)
        self.assertTrue(lines[0].startswith(f"tightkv: the host runs stock: profile {file} does not fit this model: "), output)
        self.assertEqual(output.stats()["native_writes"], 0, output)
        self.assertEqual(output.out, self.stock())

    def test_profile_of_another_model(self):
        if not MODEL.name.startswith("SmolLM2-135M"):
            self.skipTest(f"the shape of {MODEL} is not known here")
        output, file, lines = self.profiled(30, 3, 64)
        self.assertEqual(len(lines), 2, output)
        belongs = [line for line in lines if line.startswith(f"tightkv: profile {file} belongs to another model: ")]
        self.assertEqual(len(belongs), 1, output)
        self.assertTrue(belongs[0].endswith("; the cache goes on without it"), output)
        self.assertEqual([line for line in lines if line.startswith("tightkv: KV cache turbo4: 60 of 60 tensors compressed, ")],
                         [line for line in lines if line not in belongs], output)
        self.assertNative(output)
        self.assertEqual(output.out, complete("The capital of France is", 8).out)

    def test_quiet_hides_only_good_news(self):
        output = self.assertRan(complete("One", 1, env={"TIGHTKV_QUIET": "1", "TIGHTKV_STATS": ""}))
        self.assertEqual(output.ours(), [], output)
        self.assertNotEqual(complete("One", 1, env={"TIGHTKV_QUIET": "0", "TIGHTKV_STATS": ""}).ours(), [])
        self.assertInactive(complete("One", 1, cache="nonsense", env={"TIGHTKV_QUIET": "1"}))

    def test_position_is_named(self):
        line = self.assertInactive(complete("One", 1, cache="k=turbo4:v=turbo5"))
        self.assertRegex(line, r"\b(10|11|12)\b|character|position")
        self.assertIn("turbo5", line)

    def test_unknown_kernel_level_is_replaced(self):
        output = complete("The capital of France is", 8, env={"TIGHTKV_ISA": "nonsense"})
        self.assertNative(output)
        self.assertEqual(sum("TIGHTKV_ISA='nonsense'" in line for line in output.ours()), 1, output)

    def fake(self, *args):
        if not FAKE_HOST:
            self.skipTest("TIGHTKV_TEST_FAKE_HOST is not set")
        done = subprocess.run([FAKE_HOST, ADAPTER, *args], env=environment("turbo4", False, {}), capture_output=True, text=True, timeout=60)
        return Output(f"fake_host {args}", done.returncode, done.stdout, done.stderr)

    def test_hosts_of_other_versions(self):
        # fake_host: API version, whether API 3's functions are exported, whether there is a CPU device
        for args, words in {("99", "plain"): "backend API 99 is unknown; this adapter knows 2 and 3", ("1", "plain"): "backend API 1 is unknown",
                            ("3", "plain"): "contradict each other", ("0", "nodevice"): "no CPU device"}.items():
            with self.subTest(args):
                output = self.fake(*args)
                line = self.assertInactive(output)
                self.assertIn(words, line)
                self.assertIn("9.9.9", line)
                self.assertIn("init returned null", output.out)
        with self.subTest("API 2 with the functions of API 3"):
            if FAKE_HOST:
                done = subprocess.run([FAKE_HOST + "_with_api3", ADAPTER, "2", "plain"], env=environment("turbo4", False, {}),
                                      capture_output=True, text=True, timeout=60)
                self.assertIn("contradict each other", self.assertInactive(Output("fake_host_with_api3", done.returncode, done.stdout, done.stderr)))


if __name__ == "__main__":
    main("llama-completion")
