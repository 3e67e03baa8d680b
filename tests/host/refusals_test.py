"""Whatever is wrong with what we are told or where we are loaded: one line, and the host runs stock."""
import os
import subprocess

from harness import ADAPTER, HostTest, Output, complete, environment, main

FAKE_HOST = os.environ.get("TIGHTKV_TEST_FAKE_HOST")


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
