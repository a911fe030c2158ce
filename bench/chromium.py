"""Chromium, and pages of our own for it."""

import contextlib
import functools
import http.server
import json
import subprocess
import threading
import urllib.parse

from harness import ROOT, Failed, running


class Tab:
    """A tab, driven by tab.mjs."""

    def __init__(self, driver):
        self.driver = driver

    def _do(self, *words):
        self.driver.stdin.write(json.dumps(words) + "\n")
        self.driver.stdin.flush()
        answer = json.loads(self.driver.stdout.readline() or '{"error": "the browser has ended"}')
        if "error" in answer:
            raise Failed(f"{words}: {answer['error']}")
        return answer["value"]

    def go(self, url):
        # A page whose address differs in the fragment alone is not loaded again.
        self._do("go", "about:blank")
        self._do("go", url)

    def choose(self, selector, path):
        self._do("choose", selector, str(path))

    def click(self, selector):
        self._do("click", selector)

    def evaluate(self, expression):
        return self._do("evaluate", expression)


@contextlib.contextmanager
def chromium():
    driver = subprocess.Popen(["node", str(ROOT / "bench/tab.mjs")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        yield Tab(driver)
    finally:
        driver.stdin.close()
        driver.wait(30)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def pages():
    """Serves the repository's folders to the browser: the address of bench/pages/."""
    handler = functools.partial(Quiet, directory=str(ROOT))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/bench/pages/"
    finally:
        server.shutdown()
        server.server_close()


def start_way(tab, base, way, image, **settings):
    """Opens one of our pages, and gives it the file."""
    words = urllib.parse.quote(json.dumps({"way": way, **settings}))
    tab.go(f"{base}index.html#{words}")
    tab.choose("input", image)
