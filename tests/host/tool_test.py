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

    def test_random_models_run_in_stock_programs(self):
        shape = "--layers 2 --embd 64 --heads 4 --kv-heads 2 --ff 128 --vocab 500 --ctx 512"
        for more in ("--head-dim 96", "--head-dim 64 --experts 4 --experts-used 2", "--head-dim 128 --type f16"):
            with self.subTest(more):
                model = self.folder / "model.gguf"
                self.assertRan(run(None, command=[TOOL, "synth", *shape.split(), *more.split(), "-o", model], cache=None))
                output = run("llama-completion", "-m", model, "-p", "Any text: ä€", "-n", 8, "-t", THREADS, "-c", 256, "-no-cnv", "--ignore-eos")
                self.assertNative(output)  # of its own output a program that is done in milliseconds may lose all: it prints from another thread
                output = run("llama-bench", "-m", model, "-p", 32, "-n", 8, "-d", 64, "-t", THREADS, "-r", 1, "-fa", 1)
                self.assertNative(output)


if __name__ == "__main__":
    main("llama-completion", "llama-bench")
