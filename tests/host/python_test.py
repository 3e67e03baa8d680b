"""llama-cpp-python on the host's shared libraries, through the preload library."""
import sys

from harness import BIN, HOST_ROOT, MODEL, THREADS, HostTest, main, run

PACKAGE = HOST_ROOT / "api2/python/llama_cpp"
SCRIPT = """
import sys
from llama_cpp import Llama
# verbose: else the package closes stderr while it loads, and our start-up line with it
llm = Llama(sys.argv[1], n_ctx=256, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), flash_attn=True, verbose=True)
print(llm("The capital of France is", max_tokens=6, temperature=0)["choices"][0]["text"])
"""


class Python(HostTest):
    def python(self, **how):
        # The package wants its libraries in its own folder; the host's are linked there.
        package = self.folder / "llama_cpp"
        package.mkdir()
        for file in PACKAGE.iterdir():
            (package / file.name).symlink_to(file)
        if not (package / "lib").exists():
            (package / "lib").symlink_to(BIN)
        env = {"PYTHONPATH": str(self.folder), "LLAMA_CPP_LIB_PATH": str(BIN), "PYTHONDONTWRITEBYTECODE": "1",
               "ASAN_OPTIONS": "detect_leaks=0"}  # Python's own, at its end
        return run(None, command=[sys.executable, "-c", SCRIPT, MODEL, THREADS], env=env, **how)

    def test_completion(self):
        output = self.python(cache="turbo4")
        self.assertNative(output)
        self.assertIn("Paris", output.out)

    def test_without_the_shim_nothing_loads_us(self):
        output = self.python(cache="turbo4", shim=False)
        self.assertRan(output)
        self.assertEqual(output.ours(), [])
        self.assertIn("Paris", output.out)


if __name__ == "__main__":
    if not PACKAGE.is_dir():
        print(f"skipped: not there: {PACKAGE}")
        sys.exit(77)
    main("libllama.so")
