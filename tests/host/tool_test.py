"""`tightkv run --cache SPEC -- PROGRAM` gives a program what it needs."""
import os

from harness import BIN, MODEL, THREADS, HostTest, main, run

TOOL = os.environ.get("TIGHTKV_TEST_TOOL") or "build/bin/tightkv"
COMPLETION = [BIN / "llama-completion", "-m", MODEL, "-p", "The capital of France is", "-n", 4, "-t", THREADS, "-c", 256, "-no-cnv", "--temp", 0]


class Tool(HostTest):
    def test_run(self):
        output = run(None, command=[TOOL, "run", "--cache", "k=turbo4:v=turbo3", "--", *COMPLETION], cache=None, env={"TIGHTKV_STATS": "1"})
        self.assertNative(output)
        self.assertIn("cache k=turbo4:v=turbo3,", output.start_line())
        self.assertIn("Paris", output.out)

    def test_exit_code_is_the_programs(self):
        output = run(None, command=[TOOL, "run", "--cache", "turbo4", "--", "sh", "-c", "exit 7"], cache=None)
        self.assertEqual(output.code, 7, output)


if __name__ == "__main__":
    main("llama-completion")
