"""Chromium, and pages of our own for it."""

import contextlib
import functools
import http.server
import json
import subprocess
import threading
import urllib.parse

from harness import ROOT, Failed


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

    @contextlib.contextmanager
    def page(self, url):
        """A page in a tab of its own, as long as it is wanted."""
        self._do("open", url)
        try:
            yield
        finally:
            self._do("close")

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


@contextlib.contextmanager
def way(tab, base, name, image, **settings):
    """One of our pages, with the file."""
    words = urllib.parse.quote(json.dumps({"way": name, **settings}))
    with tab.page(f"{base}index.html#{words}"):
        tab.choose("input", image)
        yield
