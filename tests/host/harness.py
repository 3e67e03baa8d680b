"""Runs stock llama.cpp programs, with and without the adapter, for the tests beside this file.

Everything comes from the environment (CMakeLists.txt sets it); by hand the defaults fit a tree that ./run has built:
  TIGHTKV_TEST_HOST     api2 (default), api3 or api2-dl: which unmodified llama.cpp
  TIGHTKV_HOST_ROOT     folder of these hosts             TIGHTKV_TEST_MODEL    GGUF file
  TIGHTKV_TEST_F32      that model with weights in F32    TIGHTKV_TEST_SHIM     libtightkv-preload.so
  TIGHTKV_TEST_ADAPTER  libggml-tightkv.so
  TIGHTKV_TEST_THREADS  per program, default 2
  TIGHTKV_TEST_TEXT     English text                      TIGHTKV_TEST_PRELOAD  goes first into LD_PRELOAD (a sanitizer's runtime)
  TIGHTKV_TEST_SLOWDOWN how many times slower than usual the programs are (thread sanitizer: 20), default 1. Time limits grow by it; above 4
                        prompts and contexts are shorter. What is checked stays the same.

A test file is a script: it ends with 0, 1, or 77 when everything in it was skipped.
"""
import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SKIPPED = 77
REPO = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("TIGHTKV_CACHE") or pathlib.Path.home() / ".cache/tightkv")


def setting(name, default):
    return pathlib.Path(os.environ.get(name) or default)


HOST = os.environ.get("TIGHTKV_TEST_HOST") or "api2"
HOST_ROOT = setting("TIGHTKV_HOST_ROOT", CACHE / "hosts")
BIN = HOST_ROOT / HOST / "build/bin"
MODEL = setting("TIGHTKV_TEST_MODEL", CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf")
# What most tests run: the same values in F32, if that file is there, take a third of the processor time per token of a prompt. Single tokens
# take twice as long, as they read all of the file: tests that generate many of them take MODEL.
WEIGHTS = setting("TIGHTKV_TEST_F32", MODEL)
if not WEIGHTS.exists():
    WEIGHTS = MODEL
ADAPTER = setting("TIGHTKV_TEST_ADAPTER", REPO / "build/lib/libggml-tightkv.so")
SHIM = setting("TIGHTKV_TEST_SHIM", REPO / "build/lib/libtightkv-preload.so")
TEXT = setting("TIGHTKV_TEST_TEXT", REPO / "data/demo.txt")
DYNAMIC = HOST.endswith("-dl")  # backends are libraries: the variable alone is enough
API = 3 if HOST.startswith("api3") else 2
THREADS = os.environ.get("TIGHTKV_TEST_THREADS") or "2"
SLOWDOWN = float(os.environ.get("TIGHTKV_TEST_SLOWDOWN") or 1)
SHORT = SLOWDOWN > 4
LIMIT = 240 * SLOWDOWN  # seconds; only there to end a hang


def environment(cache, shim, extra):
    """A program's environment: ours, without anything that could steer the host or the adapter, plus what is asked for."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TIGHTKV", "GGML_", "LLAMA_", "LD_PRELOAD"))}
    preload = [os.environ.get("TIGHTKV_TEST_PRELOAD", "")]
    if cache is not None:
        env.update(TIGHTKV=cache, TIGHTKV_STATS="1", GGML_BACKEND_PATH=str(ADAPTER))
        if shim:
            preload.append(str(SHIM))
    env.setdefault("GOMP_SPINCOUNT", "20000")  # on a busy machine, threads that spin for their siblings make everything 100 times slower
    env["LD_PRELOAD"] = ":".join(filter(None, preload))
    env.update(extra or {})
    return {k: v for k, v in env.items() if v is not None}


class Output:
    """What a program left behind, and what the adapter said in it."""

    def __init__(self, command, code, out, err):
        self.command, self.code, self.out, self.err = command, code, out, err

    def ours(self):
        return re.findall(r"tightkv: .*", self.err)

    def start_line(self):
        lines = [line for line in self.ours() if line.startswith(("tightkv: active", "tightkv: inactive"))]
        return lines[0] if lines else ""

    def stats(self):
        found = re.findall(r"tightkv: stats (\{.*\})", self.err)
        return json.loads(found[-1]) if found else {}

    def tensors(self):
        """(compressed, all) of the cache tensors, as the adapter announces them when the cache is first used."""
        found = re.search(r"tightkv: KV cache .*?: (\d+) of (\d+) tensors compressed", self.err)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def __str__(self):
        return f"{self.command}\nexit code {self.code}\n--- stdout (end)\n{self.out[-2000:]}\n--- stderr (end)\n{self.err[-3000:]}"


def run(program, *args, cache="turbo4", shim=not DYNAMIC, env=None, command=None):
    """Runs a program of the host to its end. cache None: without any variable of ours."""
    argv = [str(a) for a in (command or [BIN / program, *args])]
    done = subprocess.run(argv, env=environment(cache, shim, env), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
    return Output(f"TIGHTKV={cache} shim={shim} env={env} {' '.join(argv)}", done.returncode,
                  done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


class HostTest(unittest.TestCase):
    """Assertions on outputs; `self.folder` is an empty folder per test."""

    longMessage = True

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tightkv-host-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def assertRan(self, output):
        self.assertEqual(output.code, 0, output)
        return output

    def assertActive(self, output):
        """The run was on a compressed cache, by the adapter's own account. Returns its counts."""
        self.assertRan(output)
        line = output.start_line()
        self.assertTrue(line.startswith("tightkv: active, "), output)
        self.assertIn(f"backend API {API}, a tested version", line)
        self.assertEqual(sum("tightkv: active" in said for said in output.ours()), 1, output)
        stats = output.stats()
        self.assertGreater(stats.get("native_attention", 0), 0, output)
        self.assertGreater(stats["native_writes"], 0, output)
        self.assertEqual(stats["refused_rows"], 0, output)
        return stats

    def assertNative(self, output):
        """Active, and no cache operation went any other way than through our kernels."""
        stats = self.assertActive(output)
        compressed, tensors = output.tensors()
        self.assertGreater(tensors, 0, output)
        self.assertEqual(compressed, tensors, output)
        self.assertEqual(stats["generic_ops"], 0, output)
        self.assertEqual(stats["fallback_ops"], 0, output)
        # One write per tensor and one attention per layer in every graph.
        self.assertEqual(stats["native_writes"], stats["graphs"] * tensors, output)
        self.assertEqual(2 * stats["native_attention"], stats["graphs"] * tensors, output)
        return stats

    def assertInactive(self, output):
        """The host ran stock, and the adapter said so in one line."""
        self.assertRan(output)
        self.assertEqual(len(output.ours()), 1, output)
        self.assertTrue(output.ours()[0].startswith("tightkv: inactive, the host runs stock: "), output)
        return output.ours()[0]


def text(n_bytes):
    """A file with the start of the text: llama.cpp tokenises all of it before it looks at --chunks."""
    path = scratch() / f"text-{n_bytes}.txt"
    if not path.exists():
        path.write_bytes(TEXT.read_bytes()[:n_bytes])
    return path


_scratch = None


def scratch():
    """A folder for the whole script."""
    global _scratch
    if _scratch is None:
        _scratch = pathlib.Path(tempfile.mkdtemp(prefix="tightkv-host-"))
    return _scratch


# A text whose continuation a small model is sure of, and which it can only find by looking into its cache.
def counting(last):
    return "The numbers from one to one hundred: " + ", ".join(map(str, range(1, last + 1))) + ","


COUNTED = 20 if SHORT else 60
COUNTING = counting(COUNTED)  # 4 * COUNTED - 1 tokens of the default model
NEXT = f"{COUNTED + 1}, {COUNTED + 2}"


def complete(prompt, n, *args, **how):
    """llama-completion, greedy."""
    return run("llama-completion", "-m", WEIGHTS, "-p", prompt, "-n", n, "-t", THREADS, "-c", 512, "-no-cnv", "--temp", 0, *args, **how)


def perplexity(*args, ctx=512, chunks=2, model=WEIGHTS, **how):
    """llama-perplexity, one sequence at a time."""
    return run("llama-perplexity", "-m", model, "-f", text(16384), "-c", ctx, "-b", ctx, "--chunks", chunks, "-t", THREADS, *args, **how)


def final_ppl(output):
    """The digits of the last line, as text: equal or not."""
    found = re.search(r"Final estimate: PPL = (\S+)", output.out + output.err)
    return found[1] if found else f"no perplexity in the output of {output}"


class Divergence:
    """How far a run is from a stock f16 run (or from a run with base_how) on the same tokens, measured by llama-perplexity itself."""

    base = {}

    def __init__(self, *args, ctx=512, chunks=2, model=WEIGHTS, base_how=None, **how):
        size = {"ctx": ctx, "chunks": chunks, "model": str(model)}
        base_how = {"cache": None, **(base_how or {}), **size}
        key = json.dumps(base_how)
        if key not in self.base:
            path = scratch() / f"logits-{len(self.base)}"
            base = perplexity("--kl-divergence-base", path, **base_how)
            if base.code != 0:
                raise AssertionError(f"the run to compare with failed: {base}")
            self.base[key] = path
        self.output = perplexity("--kl-divergence-base", self.base[key], "--kl-divergence", *args, **size, **how)
        all_text = self.output.out + self.output.err
        number = r"\s*:\s*(-?[0-9.]+) ±\s*([0-9.]+)"
        kld = re.search("Mean +KLD" + number, all_text)
        dln = re.search(r"Mean ln\(PPL\(Q\)/PPL\(base\)\)" + number, all_text)
        if self.output.code != 0 or not kld or not dln:
            raise AssertionError(f"no divergence in the output of {self.output}")
        self.kld, self.kld_se, self.dln, self.dln_se = map(float, (*kld.groups(), *dln.groups()))

    def __str__(self):
        return f"KLD {self.kld:.6f} ± {self.kld_se:.6f}, ln PPL {self.dln:+.6f} ± {self.dln_se:.6f}"


class Server:
    """llama-server on a free port of this machine; `with Server(…) as s`. Ends it by SIGTERM, then `s.output` stands."""

    def __init__(self, *args, cache="turbo4", shim=not DYNAMIC, env=None, model=WEIGHTS):
        self.args, self.how, self.cache, self.model = args, (cache, shim, env), cache, model
        self.output = None

    def __enter__(self):
        for _ in range(5):  # another process may take the port between our look and the server's bind
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.port = s.getsockname()[1]
            argv = [str(a) for a in (BIN / "llama-server", "-m", self.model, "--host", "127.0.0.1", "--port", self.port, "-t", THREADS, "-tb", THREADS,
                                     "--threads-http", 4, *self.args)]
            self.log = tempfile.TemporaryFile()
            self.process = subprocess.Popen(argv, env=environment(*self.how), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
            self.command = f"TIGHTKV={self.cache} {' '.join(argv)}"
            if self.wait_until_healthy():
                return self
            self.stop()
            if "couldn't bind" not in self.output.err:
                break
        raise AssertionError(f"the server did not start: {self.output}")

    def wait_until_healthy(self):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/health")[0] == 200:
                    return True
            time.sleep(0.05)
        return False

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else None
        finally:
            connection.close()

    def complete(self, prompt, n, slot=-1, **more):
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "id_slot": slot, "cache_prompt": True, **more}
        status, answer = self.request("POST", "/completion", body)
        if status != 200:
            raise AssertionError(f"completion: {status} {answer}")
        return answer

    def slot(self, i, action, **body):
        return self.request("POST", f"/slots/{i}?action={action}", body)

    def stop(self):
        if self.output is None:
            # The server's handler takes the lock of its queue: a signal that comes while its main thread holds it, which it does for a moment
            # after every answer, hangs it.
            time.sleep(0.05 * SLOWDOWN)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.log.seek(0)
            self.output = Output(self.command, self.process.returncode, "", self.log.read().decode(errors="replace"))
            self.log.close()
        return self.output

    def __exit__(self, *_):
        self.stop()


def in_parallel(*jobs):
    """Results of the functions, all at once; the first exception of a thread is raised here."""
    results, errors = [None] * len(jobs), []

    def work(i, job):
        try:
            results[i] = job()
        except BaseException as e:  # pylint: disable=broad-except
            errors.append(e)

    threads = [threading.Thread(target=work, args=(i, job)) for i, job in enumerate(jobs)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]
    return results


def main(*programs):
    """Runs the calling script's tests. `programs`: what the host must have."""
    missing = [p for p in (*(BIN / name for name in programs), MODEL, ADAPTER, SHIM, TEXT) if not p.exists()]
    if missing:
        print(f"skipped: not there: {', '.join(map(str, missing))} (./run test prepares everything)")
        sys.exit(SKIPPED)
    try:
        result = unittest.main(verbosity=2, exit=False, module="__main__").result
    finally:
        if _scratch:
            shutil.rmtree(_scratch, ignore_errors=True)
    for test, why in result.skipped:
        print(f"skipped: {test}: {why}")
    if not result.wasSuccessful() or result.testsRun == 0:
        sys.exit(1)
    sys.exit(SKIPPED if len(result.skipped) >= result.testsRun else 0)
