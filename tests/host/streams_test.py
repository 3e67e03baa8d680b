"""Several sequences in one graph, each in a stream of its own or all in one."""
import re

from harness import MODEL, SHORT, THREADS, HostTest, main, run, text


class Streams(HostTest):
    def test_chunks_side_by_side_are_chunks_one_by_one(self):
        ctx = 64 if SHORT else 128

        def chunks(*args, **how):
            output = run("llama-perplexity", "-m", MODEL, "-f", text(16384), "-c", ctx, "--chunks", 3, "-t", THREADS, *args, **how)
            return output, [float(x) for x in re.findall(r"\[\d\]([0-9.]+)", output.out + output.err)]

        one, expected = chunks("-b", ctx)
        many, values = chunks("-b", 3 * ctx, "-ub", 3 * ctx)
        unified, in_one = chunks("-b", 3 * ctx, "-ub", 3 * ctx, "-kvu")
        for output in (one, many, unified):
            self.assertNative(output)
        self.assertLess(many.stats()["graphs"], one.stats()["graphs"])
        self.assertEqual(len(expected), 3)
        # Streams are independent to the last bit of every row, and so are rows of a graph: the printed digits are the same.
        self.assertEqual(values, expected)
        # One stream for all: another number of masked cells beside each row, so sums may be rounded differently.
        for a, b in zip(in_one, expected):
            self.assertLess(abs(a / b - 1), 0.1)

    def test_shared_prompt(self):
        for more, n_kv in ([], (54, 108, 216)), (["-kvu"], (54, 60, 72)):
            with self.subTest(more):
                output = run("llama-batched-bench", "-m", MODEL, "-c", 512, "-b", 256, "-t", THREADS, "-npp", 48, "-ntg", 6, "-npl", "1,2,4",
                             "-pps", *more)
                stats = self.assertNative(output)
                # A stream's rows are copied as they are; in one stream for all, the cells are shared.
                (self.assertEqual if more else self.assertGreater)(stats["rows_written"], 0, output)
                rows = re.findall(r"^\|\s+48 \|\s+6 \|\s+(\d) \|\s+(\d+) \|", output.out, re.M)
                self.assertEqual(rows, [(str(n), str(kv)) for n, kv in zip((1, 2, 4), n_kv)], output)


if __name__ == "__main__":
    main("llama-perplexity", "llama-batched-bench")
