"""Saved states: llama-completion --prompt-cache, whose file is stock's own format with f16 rows."""
import shutil
import struct

from harness import COUNTED, COUNTING, HostTest, complete, main

PROMPT = COUNTING
N = 10
F16_ROWS = struct.pack("<iQ", 1, 192 * 2)  # in front of each tensor's rows: type f16, bytes per row (the default model's keys)


def continuation(output):
    return output.out.split(PROMPT[-40:], 1)[-1].strip()


class State(HostTest):
    def save(self, name="state", **how):
        """(file, the run that wrote it)"""
        path = self.folder / name
        output = complete(PROMPT, N, "--prompt-cache", path, **how)
        self.assertRan(output)
        self.assertIn(f"saved session before last token to {path}", output.err)
        return path, output

    def load(self, path, **how):
        """From a copy: the program writes to its file."""
        copy = self.folder / "copy"
        shutil.copy(path, copy)
        return complete(PROMPT, N, "--prompt-cache", copy, "--prompt-cache-ro", **how)

    def assertLoaded(self, output):
        self.assertRan(output)
        self.assertIn("session file has exact match for prompt", output.err, output)
        return output

    def test_reload_continues_as_if_never_stopped(self):
        path, first = self.save()
        again = self.assertLoaded(self.load(path))
        self.assertNative(first)
        stats = self.assertNative(again)
        self.assertGreater(stats["rows_written"], 0, again)  # from the file
        self.assertTrue(continuation(first))
        self.assertEqual(continuation(again), continuation(first))

    def test_stock_and_compressed_programs_read_each_other(self):
        ours, compressed = self.save("ours")
        theirs, stock = self.save("theirs", cache=None)
        self.assertEqual(ours.stat().st_size, theirs.stat().st_size)
        self.assertNotEqual(ours.read_bytes(), theirs.read_bytes())
        stock_on_ours = self.assertLoaded(self.load(ours, cache=None))
        self.assertEqual(stock_on_ours.ours(), [])
        ours_on_theirs = self.assertLoaded(self.load(theirs))
        self.assertNative(ours_on_theirs)
        for a, b in ((stock_on_ours, compressed), (ours_on_theirs, stock)):
            self.assertEqual(continuation(a), continuation(b), f"{a}\n{b}")

    def test_damaged_files_end_in_an_error_message(self):
        path, _ = self.save()
        good = path.read_bytes()
        damages = {"cut in the header": good[:3], "cut in the tokens": good[:100], "cut in the keys": good[:len(good) // 3],
                   "last byte missing": good[:-1], "wrong magic": b"\xff" * 4 + good[4:]}
        rows = good.index(F16_ROWS) + len(F16_ROWS) if F16_ROWS in good else None
        if rows:
            damages["wrong row type"] = good[:rows - len(F16_ROWS)] + struct.pack("<iQ", 8, 192 * 2) + good[rows:]
        for name, data in damages.items():
            with self.subTest(name):
                path.write_bytes(data)
                output = self.load(path)
                self.assertEqual(output.code, 1, output)  # not a signal
                self.assertIn("failed to load session file", output.err)
                self.assertTrue(output.start_line().startswith("tightkv: active"), output)

    def test_what_is_in_the_file_is_what_is_read(self):
        # The negative control of this file: other values in it, another text.
        path, first = self.save()
        data = bytearray(path.read_bytes())
        at, n = data.find(F16_ROWS), 0
        if at < 0:
            self.skipTest("the model's rows have another size than the default model's")
        while at >= 0:  # all keys and values of all layers
            begin, end = at + len(F16_ROWS), at + len(F16_ROWS) + 5 * COUNTED // 2 * 384  # of the first half of the prompt and more
            data[begin:end] = bytes(end - begin)
            at, n = data.find(F16_ROWS, end), n + 1
        self.assertEqual(n, 60)
        path.write_bytes(data)
        output = self.assertLoaded(self.load(path))
        self.assertNative(output)
        self.assertNotEqual(continuation(output), continuation(first))

    def test_values_that_are_no_numbers_are_refused_and_counted(self):
        path, _ = self.save()
        data = bytearray(path.read_bytes())
        at = data.find(F16_ROWS)
        if at < 0:
            self.skipTest("the model's rows have another size than the default model's")
        begin = at + len(F16_ROWS)
        data[begin:begin + 10 * 384] = struct.pack("<H", 0x7e00) * (10 * 192)  # NaN: ten tokens, three heads
        path.write_bytes(data)
        output = self.assertLoaded(self.load(path))
        self.assertEqual(output.stats()["refused_rows"], 30, output)
        self.assertTrue(continuation(output))


if __name__ == "__main__":
    main("llama-completion")
