"""Loaded twice: by GGML_BACKEND_PATH in a host with dynamic backends, and by the preload library. The hooks must not wrap themselves."""
from harness import HostTest, complete, main


class Loading(HostTest):
    def test_once_and_twice_are_the_same(self):
        once = complete("The capital of France is", 8, shim=False)
        twice = complete("The capital of France is", 8, shim=True)
        for output in (once, twice):
            self.assertNative(output)
            self.assertIn("Paris", output.out)
        self.assertEqual(once.out, twice.out)
        self.assertEqual(once.stats(), twice.stats())

    def test_inactive_is_said_once(self):
        output = complete("The capital of France is", 8, shim=True, cache="")
        self.assertIn("TIGHTKV is not set", self.assertInactive(output))


if __name__ == "__main__":
    main("llama-completion")
