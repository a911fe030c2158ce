"""Chromium, and pages of our own for it."""

import contextlib
import functools
import http.server
import json
import subprocess
import threading
import urllib.parse

from harness import ROOT, Failed


class Browser:
    """Chromium, driven by tab.mjs."""

    def __init__(self, driver):
        self.driver = driver

    def do(self, *words):
        self.driver.stdin.write(json.dumps(words) + "\n")
        self.driver.stdin.flush()
        answer = json.loads(self.driver.stdout.readline() or '{"error": "the browser has ended"}')
        if "error" in answer:
            raise Failed(f"{words}: {answer['error']}")
        return answer["value"]

    @contextlib.contextmanager
    def page(self, url):
        """A page in a window of its own, as long as it is wanted."""
        page = Page(self, self.do("open", url))
        try:
            yield page
        finally:
            page.do("close")


class Page:
    def __init__(self, browser, id):
        self.browser, self.id = browser, id

    def do(self, verb, *words):
        return self.browser.do(verb, self.id, *words)

    def choose(self, selector, path):
        self.do("choose", selector, str(path))

    def click(self, selector):
        self.do("click", selector)

    def evaluate(self, expression):
        return self.do("evaluate", expression)


@contextlib.contextmanager
def chromium():
    driver = subprocess.Popen(["node", str(ROOT / "bench/tab.mjs")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        yield Browser(driver)
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
def way(browser, base, name, image, **settings):
    """One of our pages, with the file."""
    words = urllib.parse.quote(json.dumps({"way": name, **settings}))
    with browser.page(f"{base}index.html#{words}") as page:
        page.choose("input", image)
        yield
